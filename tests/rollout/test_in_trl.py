import pytest

from tests.rollout.in_process_rollouts import check, train


@pytest.mark.parametrize("routing", ["dense", "topk"])
def test_an_engine_in_step_has_a_ratio_of_one(tmp_path, routing):
    check("transformers", str(tmp_path), routing)


def test_a_stale_engine_shows_in_the_ratio(tmp_path):
    logs = train("transformers", str(tmp_path), is_stale=True)
    assert logs[0]["sampling/sampling_logp_difference/max"] < 1e-4
    assert logs[-1]["sampling/sampling_logp_difference/max"] > 1e-2


def test_the_share_of_clipped_ratios_is_logged(tmp_path):
    logs = train("transformers", str(tmp_path), is_stale=True, vllm_importance_sampling_clip_max=1.001)
    shares = [log["sampling/importance_sampling_ratio/clipped"] for log in logs]
    assert shares[0] == 0 < max(shares) <= 1


@pytest.mark.parametrize("bent", [{"top_k": 10}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.2}])
def test_truncated_sampling_is_refused(tmp_path, bent):
    with pytest.raises(ValueError, match=f"{next(iter(bent))} would change"):
        train("transformers", str(tmp_path), **bent)
