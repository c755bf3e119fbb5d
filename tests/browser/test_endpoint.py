"""A page in a browser cannot use the endpoint unless it has the same origin and the key."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.serving.test_endpoint import KEY, Served, serving, write_night

pytestmark = pytest.mark.browser

ASK = """async ([url, key, mode]) => {
  const plain = mode === "no-cors";
  const headers = plain ? {} : {"Content-Type": "application/json"};
  if (key) headers["Authorization"] = `Bearer ${key}`;
  const asked = {model: "chain", messages: [{role: "user", content: "the boat"}], max_tokens: 4};
  try {
    const answer = await fetch(url, {method: "POST", mode, headers, body: JSON.stringify(asked)});
    return [answer.type, answer.status, await answer.text()];
  } catch (error) {
    return [String(error)];
  }
}"""


class Page(BaseHTTPRequestHandler):
    """An empty page of another origin."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Do not log."""


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    chain = tmp_path_factory.mktemp("chains") / "chain"
    write_night(chain, 1)
    with serving(chain, "--backend", "transformers", "--record", str(chain / "wake.db")) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_page_of_the_same_origin_is_answered_if_it_has_the_key(served, open_tab) -> None:
    page = open_tab(served.url.replace("/v1", "/health")).page
    kind, status, text = page.evaluate(ASK, [f"{served.url}/chat/completions", KEY, "cors"])
    assert (kind, status) == ("basic", 200) and '"system_fingerprint":"night-001:entry-000:' in text.replace(" ", "")
    kind, status, text = page.evaluate(ASK, [f"{served.url}/chat/completions", "", "cors"])
    assert status == 401 and "invalid_api_key" in text


@pytest.mark.parametrize("key", [KEY, ""])
def test_a_page_of_another_origin_is_refused_even_with_the_key(served, elsewhere, open_tab, key) -> None:
    before = served.recorded()
    tab = open_tab(elsewhere)
    assert tab.page.evaluate(ASK, [f"{served.url}/chat/completions", key, "cors"]) == ["TypeError: Failed to fetch"]
    assert any("CORS policy" in words for words in tab.errors), tab.errors
    assert served.recorded() == before


def test_a_request_without_preflight_has_no_key(served, elsewhere, open_tab) -> None:
    """Without a key header the browser sends the request without preflight, and the endpoint answers 401."""
    before, log = served.recorded(), served.chain / "log"
    refused = log.read_text().count("POST /v1/chat/completions: 401")
    page = open_tab(elsewhere).page
    assert page.evaluate(ASK, [f"{served.url}/chat/completions", "", "no-cors"]) == ["opaque", 0, ""]
    assert log.read_text().count("POST /v1/chat/completions: 401") == refused + 1
    assert served.recorded() == before
