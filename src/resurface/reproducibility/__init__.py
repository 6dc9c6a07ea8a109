"""What makes results checkable: fingerprints of the source that a job runs, and where interrupted jobs resume from."""
