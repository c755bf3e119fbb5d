"""The base class of both trainers is constructed as GRPOTrainer is."""

from trl import GRPOConfig

from sleep_trl.trainers.expert_checkpoints import ExpertCheckpoints, StopIfNotFinite
from tests.tiny import tiny_tokenizer
from tests.trainers.seedings import length_reward, rows, student


def test_arguments_may_be_positional_and_args_may_be_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without args, TRL makes a folder named after the model
    args = GRPOConfig(str(tmp_path / "given"), bf16=False, use_cpu=True, report_to="none")
    given = ExpertCheckpoints(student(), length_reward, args, rows(), None, tiny_tokenizer())
    assert given.args is args and given.reward_funcs == [length_reward]
    assert any(isinstance(callback, StopIfNotFinite) for callback in given.callback_handler.callbacks)
