import pytest

from eval.measures.shuffle import partners


@pytest.mark.parametrize(
    "prompts",
    [
        ["a", "b"],
        ["a", "a", "b", "c"],
        ["a", "a", "b", "b"],
        [f"prompt {i % 7}" for i in range(100)],
        [f"prompt {i}" for i in range(11)],
    ],
)
def test_each_image_gets_a_prompt_of_another_kind_and_none_is_used_twice(prompts):
    found = partners(prompts)
    assert sorted(found) == list(range(len(prompts)))
    assert all(prompts[i] != prompts[other] for i, other in enumerate(found))
    assert found == partners(prompts)


@pytest.mark.parametrize("prompts", [[], ["a"], ["a", "a", "b"], ["a"] * 9])
def test_prompts_that_are_mostly_the_same_cannot_be_shuffled(prompts):
    assert partners(prompts) is None
