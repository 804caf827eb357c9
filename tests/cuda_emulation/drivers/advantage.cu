// C entry points of the `advantage` launchers, for ctypes.
#include "advantage/cuda/advantage.cuh"

using namespace oneshot;

extern "C" int64_t emu_group_workspace(int64_t rows) {
  return cuda::group_advantages_workspace(rows);
}
extern "C" int64_t emu_whiten_workspace(int64_t count) { return cuda::whiten_workspace(count); }

namespace {

template <typename T>
int group(const void* rewards, const bool* mask, void* out, const int64_t* shape,
          const int64_t* lengths, int64_t size, const int64_t* ids, const int64_t* sizes,
          int64_t size_count, const int* words, double eps, void* workspace) {
  const TokenRows<T> tokens{static_cast<const T*>(rewards), mask, static_cast<T*>(out), shape[0],
                            shape[1]};
  const GroupRule rule{Baseline(words[0]), Scale(words[1]), words[2], eps,
                       words[3] == 0,      words[4] == 1};
  const cuda::RowGroups groups{size, ids, sizes, size_count};
  return int(cuda::group_advantages(tokens, lengths, groups, rule, workspace, nullptr));
}

template <typename T>
int scan(const void* rewards, const void* values, const bool* mask, const void* bootstrap,
         const int64_t* cu_seqlens, void* advantages, void* returns, const int64_t* numbers,
         double gamma, double lam) {
  const GaeArgs<T> args{static_cast<const T*>(rewards),
                        static_cast<const T*>(values),
                        mask,
                        static_cast<const T*>(bootstrap),
                        cu_seqlens,
                        static_cast<T*>(advantages),
                        static_cast<T*>(returns),
                        numbers[0],
                        numbers[1],
                        numbers[2],
                        numbers[3],
                        numbers[4],
                        numbers[5],
                        T(gamma),
                        T(gamma * lam)};
  return int(cuda::gae(args, numbers[6], nullptr));
}

template <typename T>
int whitened(const void* values, const bool* mask, void* out, int64_t count, bool shift_mean,
             double eps, void* workspace) {
  const WhitenArgs<T> args{static_cast<const T*>(values), mask, static_cast<T*>(out), count,
                           shift_mean};
  return int(cuda::whiten(args, eps, workspace, nullptr));
}

}  // namespace

extern "C" int emu_group_advantages(int wide, const void* rewards, const bool* mask, void* out,
                                    const int64_t* shape, const int64_t* lengths, int64_t size,
                                    const int64_t* ids, const int64_t* sizes, int64_t size_count,
                                    const int* words, double eps, void* workspace) {
  return (wide ? group<double> : group<float>)(rewards, mask, out, shape, lengths, size, ids, sizes,
                                               size_count, words, eps, workspace);
}

extern "C" int emu_gae(int wide, const void* rewards, const void* values, const bool* mask,
                       const void* bootstrap, const int64_t* cu_seqlens, void* advantages,
                       void* returns, const int64_t* numbers, double gamma, double lam) {
  return (wide ? scan<double> : scan<float>)(rewards, values, mask, bootstrap, cu_seqlens,
                                             advantages, returns, numbers, gamma, lam);
}

extern "C" int emu_whiten(int wide, const void* values, const bool* mask, void* out, int64_t count,
                          bool shift_mean, double eps, void* workspace) {
  return (wide ? whitened<double> : whitened<float>)(values, mask, out, count, shift_mean, eps,
                                                     workspace);
}
