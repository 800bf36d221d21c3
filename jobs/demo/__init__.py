"""The demo: a real S3 server, a real model and real reviews on one machine, nothing prepared beforehand."""
