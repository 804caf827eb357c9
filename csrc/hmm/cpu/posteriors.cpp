#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "hmm/cpu/forward_backward/tasks.h"
#include "hmm/cpu/hmm.h"

namespace oneshot::cpu {

namespace {

// The outputs of sequence b, all zero behind its end.
template <typename T>
HmmSequenceOutputs<T> outputs_of(const HmmInput<T>& in, const HmmPosteriors<T>& out, int64_t b) {
  const int64_t row = in.states, square = in.states * in.states, length = in.length(b);
  HmmSequenceOutputs<T> o{out.log_likelihood + b, nullptr, nullptr, nullptr};
  if (out.gamma != nullptr) {
    o.gamma = out.gamma + b * in.steps * row;
    std::fill(o.gamma + length * row, o.gamma + in.steps * row, T(0));
  }
  if (out.xi != nullptr) {
    const int64_t pairs = std::max<int64_t>(length - 1, 0);
    o.xi = out.xi + b * (in.steps - 1) * square;
    std::fill(o.xi + pairs * square, o.xi + (in.steps - 1) * square, T(0));
  }
  if (out.xi_sum != nullptr) o.xi_sum = out.xi_sum + b * square;
  if (length == 0) {
    *o.log_likelihood = T(0);
    if (o.xi_sum != nullptr) std::fill_n(o.xi_sum, square, T(0));
  }
  return o;
}

using MakeTask = std::function<std::unique_ptr<HmmTask>()>;

// Work of a call with float32 potentials. Sequences of one or two steps go one by one even if they
// share a matrix: [1, 1, K, K] does not say which of the two it is, and the bits shall not depend
// on what else is in the batch.
std::vector<MakeTask> tasks_of(const HmmInput<float>& in, const HmmPosteriors<float>& out,
                               const Workers& workers) {
  std::vector<MakeTask> tasks;
  std::vector<int64_t> grouped;
  const int64_t floats = in.batch * std::max<int64_t>(in.steps - 1, 0) * in.states * in.states;
  for (int64_t b = 0; b < in.batch; ++b) {
    const int64_t length = in.length(b);
    if (in.homogeneous && length > 2) {
      grouped.push_back(b);
    } else if (length > 0) {
      tasks.push_back([&in, &out, floats, b] {
        return hmm_per_step_task(HmmSequence<float>(in, b), outputs_of(in, out, b), nullptr,
                                 floats);
      });
    } else {
      outputs_of(in, out, b);
    }
  }
  const bool alone = hmm_homogeneous_one_by_one(in.states);
  if (alone && in.trans_batch_stride == 0 && !grouped.empty()) {
    const auto matrix = std::make_shared<HmmHomogeneousMatrix>(in.log_trans, in.states, 1, workers);
    for (const int64_t b : grouped) {
      tasks.push_back([&in, &out, matrix, b] {
        return hmm_per_step_task(HmmSequence<float>(in, b), outputs_of(in, out, b), matrix, 0);
      });
    }
    return tasks;
  }
  std::stable_sort(grouped.begin(), grouped.end(),
                   [&](int64_t a, int64_t b) { return in.length(a) > in.length(b); });
  const auto jobs = [&in, &out](std::vector<int64_t> sequences) {
    std::vector<HmmJob> jobs;
    for (const int64_t b : sequences) {
      jobs.push_back({HmmSequence<float>(in, b), outputs_of(in, out, b)});
    }
    return jobs;
  };
  if (in.trans_batch_stride != 0) {
    for (const int64_t b : grouped) {
      tasks.push_back([&in, &out, jobs, alone, b] {
        const float* own = in.log_trans + b * in.trans_batch_stride;
        const auto matrix = std::make_shared<HmmHomogeneousMatrix>(own, in.states, 1, Workers());
        if (!alone) return hmm_homogeneous_task(matrix, jobs({b}));
        return hmm_per_step_task(HmmSequence<float>(in, b), outputs_of(in, out, b), matrix, 0);
      });
    }
  } else if (!grouped.empty()) {
    const auto count = int64_t(grouped.size());
    const int64_t size = hmm_group_size(count, in.states, workers.threads);
    const auto matrix =
        std::make_shared<HmmHomogeneousMatrix>(in.log_trans, in.states, size, workers);
    for (int64_t first = 0; first < count; first += size) {
      const auto begin = grouped.begin() + first;
      const std::vector<int64_t> some(begin, begin + std::min(size, count - first));
      tasks.push_back([matrix, jobs, some] { return hmm_homogeneous_task(matrix, jobs(some)); });
    }
  }
  return tasks;
}

}  // namespace

void hmm_posteriors(const HmmInput<double>& in, const HmmPosteriors<double>& out,
                    const Workers& workers) {
  workers.run(in.batch, [&](int64_t b) {
    const auto o = outputs_of(in, out, b);
    if (in.length(b) > 0) hmm_double_posteriors(HmmSequence<double>(in, b), o);
  });
}

void hmm_posteriors(const HmmInput<float>& in, const HmmPosteriors<float>& out,
                    const Workers& workers) {
  const std::vector<MakeTask> make = tasks_of(in, out, workers);
  const auto count = int64_t(make.size());
  const int both = kHmmForward | kHmmBackward;
  // Few tasks: the two chains of each run on threads of their own.
  const bool split = count % workers.threads != 0 && count < 4 * workers.threads;
  if (!split) {
    workers.run(count, [&](int64_t i) {
      const auto task = make[size_t(i)]();
      task->messages_to_middle(both);
      task->normalise_at_middle();
      task->posteriors_from_middle(both);
      task->finish_pairs();
    });
    return;
  }
  std::vector<std::unique_ptr<HmmTask>> tasks(make.size());
  const auto direction = [](int64_t i) { return i % 2 == 0 ? kHmmForward : kHmmBackward; };
  workers.run(count, [&](int64_t i) { tasks[size_t(i)] = make[size_t(i)](); });
  workers.run(2 * count,
              [&](int64_t i) { tasks[size_t(i / 2)]->messages_to_middle(direction(i)); });
  workers.run(count, [&](int64_t i) { tasks[size_t(i)]->normalise_at_middle(); });
  workers.run(2 * count,
              [&](int64_t i) { tasks[size_t(i / 2)]->posteriors_from_middle(direction(i)); });
  workers.run(count, [&](int64_t i) { tasks[size_t(i)]->finish_pairs(); });
}

}  // namespace oneshot::cpu
