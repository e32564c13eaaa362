"""What holds for every test."""

from hypothesis import settings

# The same examples in every run, and no clock: a test that passed passes again, however busy the machine is.
# `--hypothesis-profile=default` explores others.
settings.register_profile("steady", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("steady")
