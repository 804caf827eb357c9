// Hidden Markov models and linear-chain CRFs on the CPU.
#pragma once

#include <cstdint>

#include "common/parallel.h"
#include "hmm/contract.h"

namespace oneshot::cpu {

void hmm_posteriors(const HmmInput<float>&, const HmmPosteriors<float>&, const Workers&);
void hmm_posteriors(const HmmInput<double>&, const HmmPosteriors<double>&, const Workers&);

void hmm_posteriors_backward(const HmmInput<float>&, const HmmUpstream<float>&,
                             const HmmGradients<float>&, const Workers&);
void hmm_posteriors_backward(const HmmInput<double>&, const HmmUpstream<double>&,
                             const HmmGradients<double>&, const Workers&);

// The path of the largest score, ties to the lowest state; path [batch, steps] is -1 behind the end
// and where the score is -inf or NaN.
void hmm_viterbi(const HmmInput<float>&, int64_t* path, float* score, const Workers&);
void hmm_viterbi(const HmmInput<double>&, int64_t* path, double* score, const Workers&);

void hmm_sample(const HmmInput<float>&, const HmmSampling&, int64_t* paths, const Workers&);
void hmm_sample(const HmmInput<double>&, const HmmSampling&, int64_t* paths, const Workers&);

void combine_emissions(const EmissionInput<float>&, float* out, const Workers&);
void combine_emissions(const EmissionInput<double>&, double* out, const Workers&);

void combine_emissions_backward(const EmissionInput<float>&, const EmissionGradients<float>&,
                                const Workers&);
void combine_emissions_backward(const EmissionInput<double>&, const EmissionGradients<double>&,
                                const Workers&);

}  // namespace oneshot::cpu
