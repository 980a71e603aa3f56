"""The job engine: plan, journal, executors, run.

A job is cut into shards by a `Plan`; the `Journal` on disk remembers which are done; `run_job` gives the others to an
executor, the only seam for engines being `concurrent.futures.Executor`.
"""
