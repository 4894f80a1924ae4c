"""The processes of the jobs: how they are started, found, signalled and reaped."""
