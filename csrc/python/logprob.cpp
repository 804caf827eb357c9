#include "cpu/logprob.h"

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "python/bindings.h"

namespace oneshot {
namespace {

// logits [rows, vocab], targets [rows, k], mask [rows], keep_mask [rows or 1, vocab].
py::tuple token_logprobs_and_entropy(const Dense<float>& logits, const Dense<int64_t>& targets,
                                     const std::optional<Dense<bool>>& mask,
                                     const std::optional<Dense<bool>>& keep_mask,
                                     double temperature) {
  const int64_t rows = logits.shape(0), vocab = logits.shape(1), k = targets.shape(1);
  py::array_t<float> logprobs({rows, k}), entropy(rows);
  std::vector<float> stats(size_t(rows * cpu::kLogprobStats));
  cpu::LogprobForward args{};
  args.input.dtype = DType::kFloat32;
  args.input.logits = logits.data();
  args.input.rows.push(rows, vocab);
  args.input.vocab = vocab;
  args.input.targets = targets.data();
  args.input.targets_per_row = k;
  args.input.mask = mask ? mask->data() : nullptr;
  args.input.keep_mask = keep_mask ? keep_mask->data() : nullptr;
  if (keep_mask) args.input.keep_rows.push(rows, keep_mask->shape(0) == 1 ? 0 : vocab);
  args.input.temperature = temperature;
  args.logprobs = logprobs.mutable_data();
  args.entropy = entropy.mutable_data();
  args.stats = stats.data();
  const int64_t bad = cpu::logprob_forward(args, 0, rows);
  for (int64_t j = 0; bad >= 0 && j < k; ++j) {
    const int64_t target = targets.at(bad, j);
    if (target < 0 || target >= vocab) {
      throw py::value_error("targets must lie in [0, " + std::to_string(vocab) + "), got " +
                            std::to_string(target) + " in row " + std::to_string(bad));
    }
  }
  return py::make_tuple(logprobs, entropy);
}

}  // namespace

void bind_logprob(py::module_& m) {
  m.def("token_logprobs_and_entropy", &token_logprobs_and_entropy, py::arg("logits"),
        py::arg("targets"), py::arg("mask"), py::arg("keep_mask"), py::arg("temperature"));
}

}  // namespace oneshot
