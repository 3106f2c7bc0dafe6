"""Run folders: what is written, what is resumed, what a RUN on the command line means."""
