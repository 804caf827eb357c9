// How the tensors of the `policy_loss` family become the views of its kernels, on either device.
#pragma once

#include <optional>
#include <vector>

#include "policy_loss/contract.h"
#include "torch/parallel.h"
#include "torch/tensors.h"

namespace oneshot {

using std::int64_t;

// The layout of `tokens`, with mask and cu_seqlens held dense for as long as the op runs.
class Layout {
 public:
  Layout(On on, const Tensor& tokens, const char* name, const OptionalTensor& mask,
         const OptionalTensor& cu_seqlens)
      : on_(on), name_(name), tokens_(tokens) {
    check_on(on_, tokens, name);
    if (tokens.dim() != (cu_seqlens ? 1 : 2)) {
      fail(name, cu_seqlens ? " must be [N] with cu_seqlens" : " must be [B, T]", ", got ",
           shape_text(tokens));
    }
    rows.wide = dtype_of(tokens, name) == DType::kFloat64;
    if (mask) {
      check_on(on_, *mask, "mask");
      check_dtype(*mask, "mask", ScalarType::Bool, "bool");
      check_same_shape(*mask, "mask", tokens, name);
      mask_ = dense(*mask);
      rows.mask = mask_pointer(*mask_);
    }
    if (cu_seqlens) {
      take_bounds(*cu_seqlens);
    } else {
      rows.batch = tokens.size(0);
      rows.width = tokens.size(1);
    }
  }

  // A tensor in the shape of the tokens or, if allowed, with one value a sequence.
  TokenView view(const OptionalTensor& t, const char* name, bool per_sequence = false) const {
    TokenView v;
    if (!t) return v;
    check_on(on_, *t, name);
    v.data = t->const_data_ptr();
    v.dtype = dtype_of(*t, name);
    if (t->numel() == tokens_.numel() && t->dim() == tokens_.dim()) {
      check_same_shape(*t, name, tokens_, name_);
      v.row_stride = t->dim() == 2 ? t->stride(0) : 0;
      v.token_stride = t->stride(t->dim() - 1);
      return v;
    }
    if (!per_sequence || t->dim() != 1 || t->size(0) != rows.batch) {
      fail(name, " must have the shape of ", name_, " ", shape_text(tokens_),
           per_sequence ? " or one value a sequence" : "", ", got ", shape_text(*t));
    }
    v.row_stride = t->stride(0);
    v.token_stride = 0;
    return v;
  }

  ScalarType result_type() const { return real_type(tokens_); }

  Tensor result(std::vector<int64_t> sizes) const {
    return torch::stable::new_empty(tokens_, sizes, result_type());
  }

  void put(Tensor& t, const double* values) const {
    for (int64_t i = 0; i < t.numel(); ++i) {
      if (rows.wide) {
        static_cast<double*>(t.mutable_data_ptr())[i] = values[i];
      } else {
        static_cast<float*>(t.mutable_data_ptr())[i] = float(values[i]);
      }
    }
  }

  // Calls f(begin, end) for ranges of sequences.
  template <typename F>
  void parallel(const F& f) const {
    const int64_t tokens = rows.batch > 0 ? tokens_.numel() / rows.batch : 0;
    TorchThreads()(0, rows.batch, grain_of(tokens), f);
  }

  Sequences rows;

 private:
  void take_bounds(const Tensor& cu_seqlens) {
    check_on(on_, cu_seqlens, "cu_seqlens");
    check_dtype(cu_seqlens, "cu_seqlens", ScalarType::Long, "int64");
    if (cu_seqlens.dim() != 1 || cu_seqlens.size(0) < 1) {
      fail("cu_seqlens must be [B + 1], got ", shape_text(cu_seqlens));
    }
    bounds_ = dense(cu_seqlens);
    rows.cu_seqlens = data<int64_t>(*bounds_);
    rows.batch = bounds_->size(0) - 1;
    if (on_ == On::kCuda) return;  // the kernel looks
    bool rises = rows.cu_seqlens[0] == 0 && rows.cu_seqlens[rows.batch] == tokens_.numel();
    for (int64_t b = 0; b < rows.batch; ++b) {
      rises = rises && rows.cu_seqlens[b] <= rows.cu_seqlens[b + 1];
    }
    if (!rises) fail("cu_seqlens must rise from 0 to ", tokens_.numel(), " (the tokens)");
  }

  On on_;
  const char* name_;
  Tensor tokens_;
  OptionalTensor mask_, bounds_;
};

inline Aggregate aggregate_of(int64_t number) {
  const auto least = int64_t(Aggregate::kTokenMean),
             most = int64_t(Aggregate::kSeqMeanTokenSumNorm);
  if (number < least || number > most) fail("aggregate is unknown: ", number);
  return Aggregate(number);
}

inline ValueInputs value_inputs(const Layout& layout, const Tensor& values,
                                const OptionalTensor& old_values, const Tensor& returns,
                                double clip) {
  return {layout.rows, layout.view(values, "values"), layout.view(old_values, "old_values"),
          layout.view(returns, "returns"), clip};
}

}  // namespace oneshot
