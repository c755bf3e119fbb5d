"""The files of a run: ledger, phases, results, model card."""
