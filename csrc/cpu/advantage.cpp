#include "cpu/advantage.h"

#define ONESHOT_KERNEL_BODY "cpu/advantage.inc"
#include "cpu/foreach_isa.h"

namespace oneshot::cpu {

void whiten_reduce(const WhitenArgs<float>& args, int power, double center, WhitenPartial* partials,
                   int64_t block_begin, int64_t block_end) {
  ONESHOT_DISPATCH_ISA(whiten_reduce, args, power, center, partials, block_begin, block_end);
}

void whiten_reduce(const WhitenArgs<double>& args, int power, double center,
                   WhitenPartial* partials, int64_t block_begin, int64_t block_end) {
  ONESHOT_DISPATCH_ISA(whiten_reduce, args, power, center, partials, block_begin, block_end);
}

void whiten_write(const WhitenArgs<float>& args, double mean, double scale, int64_t block_begin,
                  int64_t block_end) {
  ONESHOT_DISPATCH_ISA(whiten_write, args, mean, scale, block_begin, block_end);
}

void whiten_write(const WhitenArgs<double>& args, double mean, double scale, int64_t block_begin,
                  int64_t block_end) {
  ONESHOT_DISPATCH_ISA(whiten_write, args, mean, scale, block_begin, block_end);
}

}  // namespace oneshot::cpu
