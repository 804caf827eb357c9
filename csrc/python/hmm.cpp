#include "cpu/hmm.h"

#include <optional>

#include "python/bindings.h"

namespace oneshot {
namespace {

// Shapes are checked by oneshot/numpy/hmm.py.
using Lengths = std::optional<Dense<int64_t>>;
using Final = std::optional<Dense<float>>;

// log_init and log_final [1 or B, K], log_trans [1 or B, 1 or T - 1, K, K], log_emit [B, T, K].
cpu::HmmInput<float> input_of(const Dense<float>& log_init, const Dense<float>& log_trans,
                              const Dense<float>& log_emit, const Lengths& lengths,
                              const Final& log_final) {
  cpu::HmmInput<float> in;
  in.batch = log_emit.shape(0), in.steps = log_emit.shape(1), in.states = log_emit.shape(2);
  const int64_t square = in.states * in.states, matrices = log_trans.shape(1);
  in.log_init = log_init.data(), in.log_trans = log_trans.data(), in.log_emit = log_emit.data();
  in.log_final = log_final ? log_final->data() : nullptr;
  in.lengths = lengths ? lengths->data() : nullptr;
  in.init_stride = log_init.shape(0) == 1 ? 0 : in.states;
  in.final_stride = log_final && log_final->shape(0) > 1 ? in.states : 0;
  in.trans_step_stride = matrices == 1 ? 0 : square;
  in.trans_batch_stride = log_trans.shape(0) == 1 ? 0 : matrices * square;
  in.emit_step_stride = in.states, in.emit_batch_stride = in.steps * in.states;
  in.constant_trans = matrices == 1 && in.steps > 2;
  return in;
}

py::tuple hmm_posteriors(const Dense<float>& log_init, const Dense<float>& log_trans,
                         const Dense<float>& log_emit, const Lengths& lengths,
                         const Final& log_final, bool xi, bool xi_sum) {
  const auto in = input_of(log_init, log_trans, log_emit, lengths, log_final);
  py::array_t<float> log_likelihood(in.batch), gamma({in.batch, in.steps, in.states});
  py::array_t<float> pairs({xi ? in.batch : 0, in.steps - 1, in.states, in.states});
  py::array_t<float> sums({xi_sum ? in.batch : 0, in.states, in.states});
  const cpu::HmmPosteriors<float> out{log_likelihood.mutable_data(), gamma.mutable_data(),
                                      xi ? pairs.mutable_data() : nullptr,
                                      xi_sum ? sums.mutable_data() : nullptr};
  {
    py::gil_scoped_release release;
    cpu::hmm_posteriors(in, out, {});
  }
  return py::make_tuple(log_likelihood, gamma, xi ? py::object(pairs) : py::object(py::none()),
                        xi_sum ? py::object(sums) : py::object(py::none()));
}

py::tuple hmm_viterbi(const Dense<float>& log_init, const Dense<float>& log_trans,
                      const Dense<float>& log_emit, const Lengths& lengths,
                      const Final& log_final) {
  const auto in = input_of(log_init, log_trans, log_emit, lengths, log_final);
  py::array_t<int64_t> path({in.batch, in.steps});
  py::array_t<float> score(in.batch);
  int64_t* states = path.mutable_data();
  float* scores = score.mutable_data();
  {
    py::gil_scoped_release release;
    cpu::hmm_viterbi(in, states, scores, {});
  }
  return py::make_tuple(path, score);
}

}  // namespace

void bind_hmm(py::module_& m) {
  m.def("hmm_posteriors", &hmm_posteriors);
  m.def("hmm_viterbi", &hmm_viterbi);
}

}  // namespace oneshot
