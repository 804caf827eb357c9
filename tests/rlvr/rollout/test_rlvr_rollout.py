"""Sampling and generation: distribution, cache, padding, stopping."""

import pytest
import torch

from oneshot.rlvr.rollout.engine import assemble, pad_left, stop_ids, token_positions
from oneshot.rlvr.rollout.sampling import choose
from oneshot.rlvr.rollout.transformers_engine import NonFiniteLogitsError, TransformersEngine

PROMPTS = [[5, 9, 12], [7], [5, 9, 12], [30, 31, 8, 9, 10, 4, 11]]


def engine(tiny, **options):
    model, tokenizer = tiny
    defaults = {"temperature": 1.0, "max_new_tokens": 20}
    return TransformersEngine(model, tokenizer, **{**defaults, **options})


def brute_force(logits, temperature, top_k, top_p):
    """Probabilities of a row, by the definitions, in float64."""
    p = torch.softmax(logits.double() / temperature, -1)
    order = sorted(range(len(p)), key=lambda i: -p[i])
    if top_k > 0:
        order = order[:top_k]
    mass, kept = sum(p[i] for i in order), []
    reached = 0.0
    for i in order:
        if reached >= top_p * mass:
            break
        kept.append(i)
        reached += p[i]
    q = torch.zeros_like(p)
    q[kept] = p[kept]
    return q / q.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1, -1, 1), (0.6, -1, 1), (1.5, 3, 1), (1, -1, 0.7), (1, 5, 0.8)],
)
def test_choose_inverts_the_distribution(temperature, top_k, top_p):
    logits = torch.randn(9) * 2
    logits[4] = -torch.inf
    n = 20_001
    uniforms = torch.arange(n, dtype=torch.float64) / n
    tokens = choose(logits.expand(n, 9), uniforms, temperature, top_k, top_p)
    share = torch.bincount(tokens, minlength=9) / n
    expected = brute_force(logits, temperature, top_k, top_p)
    assert (share - expected).abs().max() < 1e-4
    assert share[4] == 0


def test_choose_never_takes_an_impossible_token():
    logits = torch.full((2, 1000), -torch.inf)
    logits[:, [3, 500]] = 0.1
    last = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert choose(logits, last, 1.0).tolist() == [3, 500]
    assert choose(logits, None, 1.0).tolist() == [3, 3]


def test_greedy_equals_generate_of_transformers(tiny):
    model, tokenizer = tiny
    ids, mask = pad_left(PROMPTS, tokenizer.pad_token_id)
    expected = model.generate(
        ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=20, pad_token_id=0
    )[:, ids.shape[1] :]
    found = engine(tiny, temperature=0.0).generate(PROMPTS, 1, 0)
    width = found.response_ids.shape[1]
    assert torch.equal(found.response_ids, expected[:, :width])
    assert (expected[:, width:] == 0).all()
    assert found.prompt_ids.tolist() == ids.tolist()
    assert torch.equal(found.prompt_mask, mask)


def test_logits_of_the_cache_are_those_of_the_whole_sequence(tiny):
    """Teacher forcing over prompt and response gives every sampled token back."""
    model, _ = tiny
    rollout = engine(tiny, max_sequences=5).generate(PROMPTS, 8, 3)
    ids = torch.cat([rollout.prompt_ids, rollout.response_ids], 1)
    mask = torch.cat([rollout.prompt_mask, rollout.response_mask], 1)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=token_positions(mask)).logits
    width = rollout.prompt_ids.shape[1]
    uniforms = torch.rand(32, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for t in range(rollout.response_ids.shape[1]):
        again = choose(logits[:, width + t - 1], uniforms[:, t], 1.0)
        live = rollout.response_mask[:, t]
        assert torch.equal(again[live], rollout.response_ids[live, t])


def test_masks_texts_and_ends(tiny):
    _, tokenizer = tiny
    rollout = engine(tiny).generate(PROMPTS, 16, 1)
    eos = tokenizer.eos_token_id
    assert len(rollout) == 64
    assert 0 < rollout.finished.sum() < 64  # both kinds are there, or the test shows nothing
    for ids, mask, text, finished in zip(
        rollout.response_ids.tolist(),
        rollout.response_mask.tolist(),
        rollout.texts,
        rollout.finished.tolist(),
        strict=True,
    ):
        length = sum(mask)
        assert mask == [True] * length + [False] * (len(mask) - length)
        assert (eos in ids[:length]) == finished
        if finished:
            assert ids[:length].index(eos) == length - 1
        else:
            assert length == 20
        assert set(ids[length:]) <= {tokenizer.pad_token_id}
        assert text == tokenizer.decode(ids[:length], skip_special_tokens=True)


def test_rows_do_not_depend_on_how_they_are_batched(tiny):
    whole = engine(tiny).generate(PROMPTS, 4, 2)
    parts = engine(tiny, max_sequences=3).generate(PROMPTS, 4, 2)
    assert whole.texts == parts.texts
    assert torch.equal(whole.response_mask, parts.response_mask)
    assert whole.texts != engine(tiny).generate(PROMPTS, 4, 5).texts
    assert len(set(whole.texts[:4])) > 1


def test_stop_tokens(tiny):
    model, tokenizer = tiny
    stopped = engine(tiny, stop_tokens=["a", "b"]).generate(PROMPTS, 16, 1)
    ends = tokenizer(["a", "b"], add_special_tokens=False)["input_ids"]
    assert stop_ids(model, tokenizer, ["a", "b"]) == [
        tokenizer.eos_token_id,
        ends[0][0],
        ends[1][0],
    ]
    assert all(text.find("a") in (-1, len(text) - 1) for text in stopped.texts)
    with pytest.raises(ValueError, match="'ab' must be one token of this tokenizer, it is 2"):
        engine(tiny, stop_tokens=["ab"])
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="names an end-of-sequence token"):
        stop_ids(model, tokenizer)


def test_special_tokens_that_a_reward_may_look_for_stay(tiny):
    _, tokenizer = tiny
    tokenizer.add_special_tokens({"additional_special_tokens": ["<answer>", "<turn>"]})
    ids = tokenizer("a<answer>5<answer>b", add_special_tokens=False)["input_ids"]
    eos, turn = tokenizer.convert_tokens_to_ids(["</s>", "<turn>"])
    line = tokenizer("c", add_special_tokens=False)["input_ids"][0]  # an ordinary stop token
    rows = [[*ids, eos], [*ids, turn], [*ids, line], [eos], [*ids]]
    found = assemble([[5]] * 5, rows, [True] * 5, None, tokenizer, pad_id=0, vocabulary=40)
    text = "a<answer>5<answer>b"
    assert found.texts == [text, text, text + "c", "", text]


CHAT = "{% for m in messages %}{{ m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}="


@pytest.mark.parametrize(
    ("configured", "template", "expected"),
    [
        ("</s>", None, ["</s>"]),
        ("<|endoftext|>", None, ["<|endoftext|>", "</s>"]),
        (None, None, ["</s>"]),
        ("<|endoftext|>", CHAT, ["<|endoftext|>", "</s>", "<|im_end|>"]),
        ("<|im_end|>", CHAT, ["<|im_end|>", "</s>"]),
        ("</s>", CHAT.replace("<|im_end|>", "a"), ["</s>"]),  # no special token
        ("</s>", "{{ raise_exception('system only') }}", ["</s>"]),
    ],
)
def test_every_end_of_a_turn_stops(tiny, configured, template, expected):
    """Generation config, tokenizer and chat template often name different ones."""
    model, tokenizer = tiny
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    model.resize_token_embeddings(len(tokenizer))
    if template is not None:
        tokenizer.chat_template = template
    ids = [configured] if configured is None else tokenizer.convert_tokens_to_ids([configured])
    for stored in (ids[0], ids) if configured else (None,):
        model.generation_config.eos_token_id = stored
        assert stop_ids(model, tokenizer) == tokenizer.convert_tokens_to_ids(expected)


def test_a_stop_token_that_the_model_does_not_have_is_refused(tiny):
    model, tokenizer = tiny
    model.generation_config.eos_token_id = [1, 99_999]
    with pytest.raises(ValueError, match=r"generation_config\.eos_token_id: .*below 32.*got 99999"):
        stop_ids(model, tokenizer)
    model.generation_config.eos_token_id = 1
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(ValueError, match=r"the tokenizer's eos_token: .* got 32"):
        stop_ids(model, tokenizer)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(tiny, temperature, value):
    model, _ = tiny
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = value
    with pytest.raises(NonFiniteLogitsError, match=r"layers\.1\.mlp\.down_proj\.weight has NaN"):
        engine(tiny, temperature=temperature).generate(PROMPTS, 2, 0)


def test_logits_that_overflow_are_named(tiny):
    model, _ = tiny
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    with pytest.raises(NonFiniteLogitsError, match="its weights are finite"):
        engine(tiny).generate(PROMPTS, 2, 0)


def test_longest_response_is_one_token(tiny):
    rollout = engine(tiny, max_new_tokens=1).generate(PROMPTS, 2, 0)
    assert rollout.response_ids.shape == (8, 1)
    assert rollout.response_mask.all()


def test_empty_prompt_is_an_error(tiny):
    for prompts in ([], [[5], []]):
        with pytest.raises(ValueError, match="non-empty lists of token ids"):
            engine(tiny).generate(prompts, 2, 0)


def test_a_long_response_does_not_hold_up_the_rest(tiny, monkeypatch):
    """Places are refilled: fewer passes than batches that wait for their longest response."""
    model, _ = tiny
    stops = list("abcd")  # many short responses, some long ones
    found = engine(tiny, max_sequences=8, stop_tokens=stops)
    widths = []
    forward = model.forward

    def counted(*args, **kwargs):
        widths.append(kwargs["input_ids"].shape)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    rollout = found.generate(PROMPTS, 32, 3)
    lengths = rollout.response_mask.sum(1).tolist()
    in_waves = sum(max(lengths[i : i + 8]) - 1 for i in range(0, len(lengths), 8))
    decoding = [rows for rows, tokens in widths if tokens == 1]
    assert max(rows for rows, _ in widths) <= 8
    assert len(decoding) < 0.8 * in_waves
    assert rollout.texts == engine(tiny, stop_tokens=stops).generate(PROMPTS, 32, 3).texts


def test_places_choose_the_random_numbers(tiny):
    whole = engine(tiny).generate(PROMPTS, 4, 2)
    part = engine(tiny).generate(PROMPTS[1::2], 4, 2, indices=[1, 3])
    assert part.texts == whole.texts[4:8] + whole.texts[12:]
    short = engine(tiny).generate(PROMPTS, 4, 2, limit=3)
    assert short.response_ids.shape[1] == 3


def test_ids_outside_the_vocabulary_are_errors(tiny):
    model, tokenizer = tiny
    size = model.get_input_embeddings().num_embeddings
    with pytest.raises(ValueError, match=f"a prompt has token id {size}; the model has {size}"):
        engine(tiny).generate([[5], [7, size]], 2, 0)
    with pytest.raises(ValueError, match=f"engine returned token id {size}; the model has {size}"):
        assemble([[5]], [[7, size]], [True], None, tokenizer, pad_id=0, vocabulary=size)
    with pytest.raises(ValueError, match="returned an empty response"):
        assemble([[5]], [[]], [True], None, tokenizer, pad_id=0, vocabulary=size)
