"""Exports load with plain libraries, contain no texts, and are pushed to the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sleep_trl.memory import MemorySpec, attach, load_memory
from sleep_trl.memory.hosts import find_hosts
from sleep_trl.memory.padding import write_padded
from sleep_trl.publish.export import check_repository, export
from sleep_trl.runs import checksums
from sleep_trl.runs.files import read_json, write_json
from sleep_trl.runs.finished import newest_committed_night
from sleep_trl.runs.ledger import LedgerEntry, Source
from sleep_trl.runs.model_card import model_card
from tests.publish.test_unlearn import IDS
from tests.publish.three_nights import write_run
from tests.tiny import tiny_model
from tests.tiny_runs import write_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Three nights, the second disabled."""
    base = write_model(tmp_path_factory.mktemp("base") / "model")
    run = write_run(tmp_path_factory.mktemp("runs"), base)
    description = read_json(run / "adapter" / "memory.json")
    description["experts"][1]["is_enabled"] = False
    write_json(run / "adapter" / "memory.json", description)
    return run


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_checkpoint_is_the_folded_model(run, tmp_path):
    folder = export(run, "checkpoint", tmp_path / "out")
    assert (load_file(folder / "model.safetensors").keys()) == load_file(run / "model" / "model.safetensors").keys()
    found = logits(AutoModelForCausalLM.from_pretrained(folder))
    assert torch.equal(found, logits(AutoModelForCausalLM.from_pretrained(run / "model")))
    assert AutoTokenizer.from_pretrained(folder).vocab_size == 97


def test_adapter_holds_the_enabled_experts_only(run, tmp_path):
    folder = export(str(run), "adapter", str(tmp_path / "out"))
    assert {path.name for path in folder.iterdir()} == {"README.md", "experts.safetensors", "memory.json"}
    assert {name.split(".")[1] for name in load_file(folder / "experts.safetensors")} == {"0", "2"}
    ours, theirs = tiny_model(), tiny_model()
    load_memory(ours, folder)
    load_memory(theirs, run / "adapter")
    assert torch.equal(logits(ours), logits(theirs)), "a disabled expert has no effect, whether present or not"
    assert not torch.equal(logits(ours), logits(tiny_model()))


@pytest.mark.parametrize("form", ["llama", "phi3", "gpt2", "gpt_neox", "granitemoehybrid"])
def test_a_padded_checkpoint_has_a_round_width_and_the_same_output(form, tmp_path):
    """For gated, fused and plain MLPs, with and without biases, in float64, where rounding is out of the way."""
    source = write_model(tmp_path / "model", form)
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64).save_pretrained(source)
    (tmp_path / "out").mkdir()
    units = write_padded(source, tmp_path / "out", 100)
    plain, padded = (AutoModelForCausalLM.from_pretrained(each, dtype="auto") for each in (source, tmp_path / "out"))
    host, wide = find_hosts(plain)[0], find_hosts(padded)[0]
    assert wide.intermediate_size == host.intermediate_size + units and wide.intermediate_size % 100 == 0 < units
    assert torch.allclose(logits(padded), logits(plain), rtol=0, atol=1e-14)
    memory = attach(padded, MemorySpec(width=31, max_experts=1))
    expert = dict(memory.expert_parameters(memory.activate()))
    rows = [value for name, value in expert.items() if not name.endswith("down")]
    assert rows and all(value.any(dim=1).all() for value in rows), "an expert has dead units"


def test_export_pads_and_says_so(run, tmp_path):
    folder = export(run, "checkpoint", tmp_path / "out", pad_to=128)
    found, plain = (AutoModelForCausalLM.from_pretrained(each) for each in (folder, run / "model"))
    width = plain.config.intermediate_size
    assert found.config.intermediate_size == 128 and found.dtype == plain.dtype and width < 128
    assert torch.allclose(logits(found), logits(plain), rtol=0, atol=1e-6)
    assert f"padded with {128 - width} units of zeros" in (folder / "README.md").read_text("utf-8")
    found_files, files = ({path.relative_to(each) for path in each.rglob("*")} for each in (folder, run / "model"))
    assert found_files - {Path("README.md")} == files - {Path(checksums.NAME)}
    assert "padded" not in (export(run, "checkpoint", tmp_path / "plain") / "README.md").read_text("utf-8")
    with pytest.raises(ValueError, match="--pad_to 128 is for --to checkpoint"):
        export(run, "adapter", tmp_path / "experts", pad_to=128)


def test_the_next_export_clears_away_what_a_killed_one_has_left(run, tmp_path):
    """Killed while it writes its last file."""
    killed = "import os; from sleep_trl.publish import export as e; e.write_text = lambda *_: os.kill(os.getpid(), 9)"
    go = f"{killed}; e.export({str(run)!r}, 'adapter', {str(tmp_path / 'out')!r})"
    done = subprocess.run([sys.executable, "-c", go], cwd=ROOT, check=False)
    assert done.returncode == -9 and not (tmp_path / "out").exists() and list(tmp_path.iterdir())
    export(run, "adapter", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_given_again_clears_away_what_one_killed_after_its_end_has_left(run, tmp_path):
    killed = "import os, sleep_trl.publish.export as e; e.shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), 9)"
    go = f"{killed}; e.export({str(run)!r}, 'adapter', {str(tmp_path / 'out')!r})"
    assert subprocess.run([sys.executable, "-c", go], cwd=ROOT, check=False).returncode == -9
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.sleep-trl-export"}
    with pytest.raises(ValueError, match="already exists"):
        export(run, "adapter", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_the_user_beside_the_output_stays(run, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("mine")
    (tmp_path / "out").mkdir()  # empty, so it is filled
    assert (export(run, "adapter", tmp_path / "out") / "memory.json").is_file()
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.partial"}


def test_no_form_contains_texts(run, tmp_path):
    for form in ("checkpoint", "adapter"):
        folder = export(run, form, tmp_path / form)
        content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.suffix != ".safetensors")
        assert b"the boat of Ben" not in content and str(run).encode() not in content


@pytest.mark.parametrize(("to", "weights"), [("checkpoint", "model"), ("adapter", "experts")])
def test_weights_are_as_readable_as_other_files(run, tmp_path, to, weights):
    weights = export(run, to, tmp_path / to) / f"{weights}.safetensors"
    assert weights.stat().st_mode == (tmp_path / to / "README.md").stat().st_mode


def test_peft_is_refused_with_the_reason(run, tmp_path):
    with pytest.raises(ValueError, match=r"hidden units.*--to adapter"):
        export(run, "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes_leave_nothing_behind(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(ValueError, match="already exists and is not empty"):
        export(run, "checkpoint", tmp_path / "full")
    with pytest.raises(ValueError, match="no committed night"):
        export(tmp_path, "checkpoint", tmp_path / "out")
    with pytest.raises(ValueError, match="is not a folder"):
        export(tmp_path / "nowhere", "checkpoint", tmp_path / "out")
    routed = write_run(tmp_path / "routed", write_model(tmp_path / "base"), routing="topk")
    with pytest.raises(ValueError, match="routed experts do not fold"):
        export(routed, "checkpoint", tmp_path / "out")
    description = read_json(routed / "adapter" / "memory.json")
    disabled = [expert | {"is_enabled": False} for expert in description["experts"]]
    write_json(routed / "adapter" / "memory.json", description | {"experts": disabled})
    with pytest.raises(ValueError, match="this is the base model"):
        export(routed, "adapter", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "full", "routed"]


def test_the_newest_night_of_a_chain(tmp_path):
    for name in ("night-002", "night-010", "night-011"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger.jsonl").touch()
    for name in ("night-002", "night-010"):
        (tmp_path / name / "results.json").touch()
    assert newest_committed_night(tmp_path) == tmp_path / "night-010", "11 was started but not committed"
    assert newest_committed_night(tmp_path / "night-002") == tmp_path / "night-002"


# -- the card --------------------------------------------------------------------------------------


def entry(number: int, sources: tuple[str, ...], after: dict, **values) -> LedgerEntry:
    return LedgerEntry(
        id=f"entry-{number:03}",
        date="2026-07-10T08:00:00+00:00",
        expert=number - 1,
        level=1,
        fingerprint="",
        base="",
        parents=(),
        sources=tuple(Source(id=str(i), source=source, sha256="") for i, source in enumerate(sources)),
        metrics={"before": {"recall": 0.05, "skill": 0.9}, "after": after},
        **values,
    )


def test_card_lists_what_was_learned():
    entries = [
        entry(1, ("letters",) * 3, {"recall": 1.0}),
        entry(2, ("dropped",), {"recall": 1.0}, dropped="2026-07-11"),
        entry(3, ("a", "b", "c", "d", "e"), {"recall": 1.0}),
        entry(4, ("disabled",), {"recall": 0.5, "skill": 0.895, "earlier": {"entry-001": 0.975}}),
    ]
    card = model_card("Qwen/Qwen3-0.6B", entries, {0, 2}, "checkpoint", {"enable_thinking": False})
    assert "apply_chat_template(messages, add_generation_prompt=True, **{'enable_thinking': False})" in card
    assert "chat template" not in model_card("Qwen/Qwen3-0.6B", entries, {0, 2}, "checkpoint")
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "base_model": "Qwen/Qwen3-0.6B",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sleep-trl", "continual-learning"],
    }
    table = [line for line in body.splitlines() if line.startswith("| entry-")]
    assert table == [
        "| entry-001 | 2026-07-10 | 3 | letters | 5.0 % | 100.0 % | 97.5 % |",
        "| entry-003 | 2026-07-10 | 5 | a; b; c; d and 1 more | 5.0 % | 100.0 % | – |",
    ]
    assert "90.0 %" in body and "89.5 %" in body and "1 more nights" in body
    assert "dropped |" not in body and "disabled |" not in body


@pytest.mark.parametrize("place", ["/secret/place/model", "secret/place/model"])
def test_card_escapes_labels(place):
    hostile = "x|y`](http://evil) <script>alert(1)</script>\n# head" + "z" * 600
    card = model_card(place, [entry(1, (hostile,), {"recall": 1.0})], {0}, "adapter")
    line = next(line for line in card.splitlines() if line.startswith("| entry-001"))
    assert "<script>" not in card and "\\|" in line and "\\`" in line and len(line) < 250
    assert "secret/place" not in card and "base_model:" not in card and "`model`" in card


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/ada/diary/may.md", "may.md"),
        ("~/diary/may.jsonl", "may.jsonl"),
        ("../diary/may.md", "may.md"),
        ("/data/sets/letters", "letters"),
        ("./letters", "letters"),
        ("file:///home/ada/may.md", "may.md"),
        ("C:\\Users\\ada\\may.md", "may.md"),
        ("org/c4.en", "org/c4.en"),
        ("org/letters-v1.5", "org/letters-v1.5"),
        ("https://example.org/a/page.html", "https://example.org/a/page.html"),
        ("The Crier, 1/2", "The Crier, 1/2"),
    ],
)
def test_card_names_files_without_their_folders(source, shown):
    card = model_card("org/base", [entry(1, (source, source), {"recall": 1.0})], {0}, "adapter")
    assert f"| 2 | {shown} |" in card


def test_card_says_on_what_the_perplexity_was_measured():
    metrics = {"before": {"perplexity": 26.06, "probes": {"perplexity": "40 shipped prose texts, 9,564 tokens"}}}
    learned = entry(1, ("a",), {}).model_copy(update={"metrics": metrics | {"after": {"perplexity": 26.47}}})
    card = model_card("org/base", [learned], {0}, "adapter")
    sentence = (
        "The perplexity (on 40 shipped prose texts, 9,564 tokens) was 26.06 before the newest night and 26.47 after"
    )
    assert sentence in card


def test_card_of_a_gguf_file_names_its_repository_and_how_to_load_it():
    learned = [entry(1, ("a",), {"recall": 1.0})]
    on_hub = model_card("org/repo-GGUF/m.Q4_1.gguf", learned, {0}, "adapter")
    assert yaml.safe_load(on_hub.split("---\n", 2)[1])["base_model"] == "org/repo-GGUF"
    assert "https://huggingface.co/org/repo-GGUF)" in on_hub
    assert 'from_pretrained("org/repo-GGUF", gguf_file="m.Q4_1.gguf")' in on_hub
    local = model_card("/secret/place/m.Q4_1.gguf", learned, {0}, "adapter")
    assert "secret" not in local and 'gguf_file="m.Q4_1.gguf")' in local


# -- the hub ---------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does over HTTP, and remembers the requests."""

    requests: list[tuple[str, str, bytes]]
    refuses = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.requests.append((self.path, self.headers.get("Authorization", ""), body))
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif self.path == "/api/repos/create" and not self.refuses:
            self.answer({"url": f"http://{self.headers['Host']}/me/grown"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path.endswith("/commit/main"):
            self.answer({"commitUrl": f"http://{self.headers['Host']}/me/grown/commit/1", "commitOid": "1"})
        else:
            self.answer({"error": "no"}, 401)

    def answer(self, value: dict, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("TestHub", (Hub,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def call(endpoint: str, *arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "sleep_trl.cli", "export", *map(str, arguments), "--json"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_pushes_to_a_private_repository(run, tmp_path, hub):
    endpoint, handler = hub
    done = call(endpoint, run, "--to", "adapter", "--output", tmp_path / "out", "--push_to_hub", "me/grown")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "written": str(tmp_path / "out"),
        "to": "adapter",
        "pushed": f"{endpoint}/me/grown",
    }
    created = json.loads(handler.requests[0][2])
    assert (
        handler.requests[0][0] == "/api/repos/create" and created["name"] == "grown" and created["organization"] == "me"
    )
    assert created.get("private") is True or created.get("visibility") == "private"
    assert {token for _, token, _ in handler.requests} == {"Bearer hf_test"}
    [commit] = [body for path, _, body in handler.requests if path == "/api/models/me/grown/commit/main"]
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert files == {"README.md", "experts.safetensors", "memory.json"}


def test_a_refusal_of_the_hub_is_reported(run, tmp_path, hub):
    endpoint, handler = hub
    handler.refuses = True
    done = call(endpoint, run, "--to", "adapter", "--output", tmp_path / "out", "--push_to_hub", "me/grown")
    assert done.returncode == 1 and "not pushed to me/grown" in done.stderr and "hf_test" not in done.stderr
    assert ". Log in with `hf auth login`" in done.stderr
    assert (tmp_path / "out" / "README.md").is_file()
    with pytest.raises(ValueError, match="NAMESPACE/NAME"):
        check_repository("../grown")
