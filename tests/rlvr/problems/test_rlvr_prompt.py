"""Prompts: chat template, plain text, suffix, few-shot, over-long prompts."""

import pytest
from tokenizers.processors import TemplateProcessing

from oneshot.rlvr.config import PromptConfig
from oneshot.rlvr.problems.data import Problem
from oneshot.rlvr.problems.prompt import drop_long, encode, render

PROBLEM = Problem([{"role": "user", "content": "1+1"}], "2")


def test_render(tiny):
    _, tokenizer = tiny
    assert render(PROBLEM, tokenizer, PromptConfig()) == "<s>1+1="
    styled = PromptConfig(system="add", few_shot="0+0=0. ", suffix=" ?")
    assert render(PROBLEM, tokenizer, styled) == "<s>add<s>0+0=0. 1+1 ?="
    plain = PromptConfig("plain", plain_format="q {problem} {a}:", suffix="?")
    assert render(PROBLEM, tokenizer, plain) == "q 1+1? {a}:"


def test_render_errors(tiny):
    _, tokenizer = tiny
    two = Problem(
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "2", index=9
    )
    with pytest.raises(ValueError, match="takes one message, problem 9 has 2"):
        render(two, tokenizer, PromptConfig("plain"))
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        render(PROBLEM, tokenizer, PromptConfig())
    with pytest.raises(ValueError, match=r"a text that contains \{problem\}, got 'q'"):
        PromptConfig("plain", plain_format="q")
    with pytest.raises(ValueError, match="unset when"):
        PromptConfig("plain", system="s")


def test_a_begun_response_is_continued(tiny):
    """An assistant's message at the end is no turn of its own; suffix and examples go before it."""
    _, tokenizer = tiny
    said = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "so 1"}]
    begun = Problem(said, "2")
    assert (
        render(begun, tokenizer, PromptConfig(suffix="?", few_shot="2+2. "))
        == "<s>2+2. 1+1?<s>so 1"
    )
    assert render(Problem([*said, said[0]], "2"), tokenizer, PromptConfig()).endswith("<s>1+1=")
    for messages in (said[1:], [said[0], said[1], said[1]]):
        with pytest.raises(ValueError, match=r"expected a message to answer, .*assistant"):
            render(Problem(messages, "2"), tokenizer, PromptConfig())


@pytest.mark.parametrize(
    ("added", "template", "expected"),
    [
        ("$A", "q {problem}:", "q 1+1:"),
        ("<s> $A", "q {problem}:", "<s>q 1+1:"),
        ("<s> $A", "<s>q {problem}:", "<s>q 1+1:"),  # not twice
        ("$A </s>", "q {problem}:", "q 1+1:"),  # an end before the response begins
        ("<s> $A </s>", "{problem}", "<s>1+1"),
        ("<s> $A </s>", "{problem}</s>", "<s>1+1</s>"),  # written, not added
    ],
)
def test_special_tokens_that_a_tokenizer_adds(tiny, added, template, expected):
    _, tokenizer = tiny
    tokens = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(added, special_tokens=tokens)
    (ids,) = encode([PROBLEM], tokenizer, PromptConfig("plain", plain_format=template))
    assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"]


def test_encode_and_drop_long(tiny):
    _, tokenizer = tiny
    long = Problem([{"role": "user", "content": "1" * 9}], "2")
    problems = [PROBLEM, long, PROBLEM]
    prompts = encode(problems, tokenizer, PromptConfig())
    assert tokenizer.decode(prompts[0]) == "<s>1+1="
    assert [len(p) for p in prompts] == [5, 11, 5]
    kept, ids, dropped = drop_long(problems, prompts, 5)
    assert (kept, ids, dropped) == ([PROBLEM, PROBLEM], [prompts[0]] * 2, 1)
    with pytest.raises(ValueError, match="max_prompt_tokens = 4 tokens; the shortest of 3 has 5"):
        drop_long(problems, prompts, 4)
