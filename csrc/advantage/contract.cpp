#include "advantage/contract.h"

#include <stdexcept>
#include <vector>

namespace oneshot {
namespace {

[[noreturn]] void reject(const std::string& message) { throw std::invalid_argument(message); }

// Position of `word` among the choices.
size_t choose(const char* name, const std::string& word, const std::vector<std::string>& choices) {
  for (size_t i = 0; i < choices.size(); ++i) {
    if (word == choices[i]) return i;
  }
  std::string list;
  for (const auto& choice : choices) list += (list.empty() ? "" : ", ") + choice;
  reject(std::string(name) + " must be one of " + list + ", got " + word);
}

}  // namespace

GroupRule group_rule(const std::string& baseline, const std::string& scale, int64_t ddof,
                     double eps, const std::string& singleton, const std::string& nan) {
  if (ddof != 0 && ddof != 1) reject("ddof must be 0 or 1, got " + std::to_string(ddof));
  return {static_cast<Baseline>(choose("baseline", baseline, {"mean", "loo", "opo", "none"})),
          static_cast<Scale>(choose("scale", scale, {"std", "batch_std", "none"})),
          ddof,
          eps,
          choose("singleton", singleton, {"raw", "zero"}) == 0,
          choose("nan", nan, {"propagate", "ignore"}) == 1};
}

}  // namespace oneshot
