"""TRL imports vLLM where it is installed, and vLLM imports Ray, which takes its token then or never."""

from sleep_trl.cluster import prepare

prepare()
