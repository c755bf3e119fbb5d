"""Several processes: ZeRO-3, Ray, and progress that only the first process prints."""
