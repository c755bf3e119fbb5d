"""Several processes: ZeRO-3, Ray, and progress printed by the first process only."""
