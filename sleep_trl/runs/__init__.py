"""The files of a run: ledger, phases, results and model card."""
