from eval import stage
from eval.config import EvalConfig
from imagen import config as configs


def test_a_plan_tells_how_each_member_is_sampled(tiny, tmp_path):
    lines = stage.plan(tiny.make_config(tmp_path, guidance_scale=1.5, sampler="euler"))
    assert "20 images of 20 prompts, seeds from 1000" in lines
    assert "base: 8 px, euler, 2 steps, guidance 1.5" in lines
    assert "sr1: 32 px, euler, 2 steps, guidance 1.5" in lines


def test_a_plan_tells_height_and_width_of_members_that_are_no_squares(tiny, tmp_path):
    tree = {**tiny.TREE, "out": str(tmp_path), "members": {}}
    for name, size in (("base", [8, 16]), ("sr1", [32, 64])):
        tree["members"][name] = {**tiny.TREE["members"][name], "size": size}
    lines = stage.plan(configs.build(EvalConfig, tree))
    assert "base: 8x16 px, dpmpp_2m, 2 steps, guidance 3" in lines
    assert "sr1: 32x64 px, dpmpp_2m, 2 steps, guidance 3" in lines
