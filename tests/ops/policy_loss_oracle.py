"""The losses once more, one token at a time in float64: shares no line with the package.

Values are 0-dim float64 tensors, so that autograd gives the gradient, with `.detach()` to stop it.
Every argument is a list of sequences, each a list of numbers; masked tokens are not in the lists.
"""

import math

import torch


def _clamp(x, low, high):
    return x.clamp(low, high)


def token_terms(new, old, advantage, ref, entropy, weight, ratio, o):
    """(policy, kl, entropy) of one token, given its ratio."""
    if o["surrogate"] == "clip":
        first = ratio if ratio <= o["delta"] else torch.tensor(o["delta"], dtype=torch.float64)
        second = _clamp(ratio, 1 - o["clip_low"], 1 + o["clip_high"])
        gain = first * advantage if first * advantage < second * advantage else second * advantage
        policy = -gain
        if advantage < 0 and policy > -o["dual_clip"] * advantage:
            policy = torch.tensor(-o["dual_clip"] * advantage, dtype=torch.float64)
    elif o["surrogate"] == "cispo":
        policy = -_clamp(ratio, 1 - o["clip_low"], 1 + o["clip_high"]).detach() * advantage * new
    elif o["surrogate"] == "sapo":
        sign = "pos" if advantage > 0 else "neg"
        c = o[f"sapo_temperature_{sign}"]
        policy = -advantage * 4 / c / (1 + torch.exp(-c * (ratio - 1)))
    elif o["surrogate"] == "vespo":
        sign = "pos" if advantage >= 0 else "neg"
        k, rate = o[f"vespo_k_{sign}"], o[f"vespo_lambda_{sign}"]
        policy = -(ratio**k * torch.exp(rate * (1 - ratio))).detach() * advantage * new
    elif o["surrogate"] == "gmpo":
        policy = -ratio * advantage
    else:
        policy = -advantage * new
    policy = policy * weight
    kl = torch.zeros((), dtype=torch.float64)
    if ref is not None:
        bound = o["kl_log_ratio_clamp"]
        d = _clamp(new - ref, -bound, bound)
        name = o["kl"].rstrip("+")
        kl = {
            "k1": d,
            "k2": d * d / 2,
            "k3": torch.exp(-d) - 1 + d,
            "abs": d if d >= 0 else -d,
        }[name]
        kl = _clamp(kl, -o["kl_clamp"], o["kl_clamp"])
        if o["kl"].endswith("+"):
            straight = (new - ref) ** 2 / 2
            kl = straight - straight.detach() + kl.detach()
        if o["kl_importance_weighted"]:
            kl = kl * ratio
    return policy, kl, (torch.zeros((), dtype=torch.float64) if entropy is None else entropy)


def aggregate(rows, mode, count=None, max_length=None, count_empty=False):
    """One number from per-token values."""
    total = torch.zeros((), dtype=torch.float64)
    filled = len(rows) if count_empty else sum(1 for row in rows if row)
    tokens = sum(len(row) for row in rows)
    for row in rows:
        inner = torch.zeros((), dtype=torch.float64)
        for value in row:
            inner = inner + value
        if mode == "seq-mean-token-mean" and row:
            inner = inner / len(row)
        total = total + inner
    if tokens == 0:
        return total
    if mode == "token-mean":
        total = total / (count or tokens)
    elif mode != "token-sum":
        total = total / (count or filled)
    if mode == "seq-mean-token-sum-norm":
        total = total / max_length
    return total


DEFAULTS = {
    "surrogate": "clip",
    "ratio": "token",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dual_clip": math.inf,
    "delta": math.inf,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
    "log_ratio_clamp": (-math.inf, math.inf),
    "kl": "k3",
    "kl_importance_weighted": False,
    "kl_log_ratio_clamp": math.inf,
    "kl_clamp": math.inf,
    "policy_coef": 1.0,
    "kl_coef": 0.0,
    "entropy_coef": 0.0,
    "aggregate": "token-mean",
    "kl_aggregate": None,
    "entropy_aggregate": None,
    "count": None,
    "max_length": None,
    "count_empty": False,
}


def policy_loss(new, old, advantages, ref=None, entropy=None, weights=None, **options):
    """Loss (with graph) and the figures of `PolicyMetric` by name."""
    o = {**DEFAULTS, **options}
    policy_rows, kl_rows, entropy_rows = [], [], []
    ratios, old_kl, low, high, dual = [], [], 0, 0, 0
    for b, row in enumerate(new):
        log_ratios = [
            torch.zeros((), dtype=torch.float64) + x - (x.detach() if old is None else old[b][t])
            for t, x in enumerate(row)
        ]
        entering = log_ratios
        if o["surrogate"] == "gmpo":
            # the smaller gain of the two, as in PPO, but before the mean
            entering = [
                x if x * a < bounded * a else bounded
                for x, a in zip(log_ratios, advantages[b], strict=True)
                for bounded in [x.clamp(math.log(1 - o["clip_low"]), math.log(1 + o["clip_high"]))]
            ]
        mean = sum(entering) / max(len(row), 1)
        policy_rows.append([])
        kl_rows.append([])
        entropy_rows.append([])
        for t, x in enumerate(row):
            exponent = log_ratios[t]
            if o["ratio"] == "sequence":
                exponent = mean
            elif o["ratio"] == "sequence-token":
                exponent = mean.detach() + x - x.detach()
            elif o["ratio"] == "sequence-product":
                exponent = sum(log_ratios)
            ratio = torch.exp(_clamp(exponent, *o["log_ratio_clamp"]))
            advantage = advantages[b][t]
            policy, kl, h = token_terms(
                x,
                None,
                advantage,
                None if ref is None else ref[b][t],
                None if entropy is None else entropy[b][t],
                1.0 if weights is None else weights[b][t],
                ratio,
                o,
            )
            policy_rows[b].append(policy)
            kl_rows[b].append(kl)
            entropy_rows[b].append(h)
            ratios.append(ratio.item())
            old_kl.append(-log_ratios[t].item())
            below, above = ratio < 1 - o["clip_low"], ratio > 1 + o["clip_high"]
            if o["surrogate"] == "clip":
                low += int(below and advantage < 0)
                high += int(above and advantage > 0)
                clipped = min(
                    ratio.item() * advantage,
                    min(max(ratio.item(), 1 - o["clip_low"]), 1 + o["clip_high"]) * advantage,
                )
                dual += int(
                    advantage < 0 and (ratio > o["delta"] or -clipped > -o["dual_clip"] * advantage)
                )
            elif o["surrogate"] == "cispo":
                low, high = low + int(below), high + int(above)
            elif o["surrogate"] == "gmpo":
                own = torch.exp(log_ratios[t])
                low += int(own < 1 - o["clip_low"] and advantage < 0)
                high += int(own > 1 + o["clip_high"] and advantage > 0)

    def collect(rows, mode):
        if mode is None:
            return aggregate(rows, o["aggregate"], o["count"], o["max_length"], o["count_empty"])
        return aggregate(rows, mode, None, o["max_length"], o["count_empty"])

    policy = collect(policy_rows, None)
    kl = collect(kl_rows, o["kl_aggregate"])
    h = collect(entropy_rows, o["entropy_aggregate"])
    loss = o["policy_coef"] * policy + o["kl_coef"] * kl - o["entropy_coef"] * h
    n = max(len(ratios), 1)
    metrics = {
        "policy_loss": float(policy),
        "kl_loss": float(kl),
        "entropy_loss": float(h),
        "kl": sum(float(x) for row in kl_rows for x in row) / n,
        "entropy": sum(float(x) for row in entropy_rows for x in row) / n,
        "old_policy_kl": sum(old_kl) / n,
        "ratio_mean": sum(ratios) / n,
        "ratio_min": min(ratios, default=0.0),
        "ratio_max": max(ratios, default=0.0),
        "clip_fraction_low": low / n,
        "clip_fraction_high": high / n,
        "dual_clip_fraction": dual / n,
        "tokens": float(len(ratios)),
        "sequences": float(sum(1 for row in new if row)),
    }
    return loss, metrics


def value_loss(values, old, returns, clip, mode, **overrides):
    """Half the aggregated (clipped) squared error, with graph."""
    rows = []
    for b, row in enumerate(values):
        rows.append([])
        for t, v in enumerate(row):
            error = (v - returns[b][t]) ** 2
            if clip is not None:
                bounded = _clamp(v, old[b][t] - clip, old[b][t] + clip)
                other = (bounded - returns[b][t]) ** 2
                error = other if other > error else error
            rows[-1].append(error / 2)
    return aggregate(rows, mode, **overrides)


def importance_weights(new, sampler, level, mode, low, high, clamp, normalize):
    """Weights as nested lists ([B] for level sequence)."""
    out = []
    for b, row in enumerate(new):
        logs = [float(x) - float(sampler[b][t]) for t, x in enumerate(row)]
        logs = [sum(logs)] if level == "sequence" else logs
        raw = [math.exp(min(max(x, -clamp), clamp)) for x in logs]
        if mode == "truncate":
            out.append([min(max(x, low), high) for x in raw])
        else:
            out.append([x if low <= x <= high else 0.0 for x in raw])
    if normalize:
        kept = [x for b, row in enumerate(out) for x in row if new[b]]
        mean = sum(kept) / len(kept)
        out = [[x / mean for x in row] for row in out]
    return [row[0] for row in out] if level == "sequence" else out
