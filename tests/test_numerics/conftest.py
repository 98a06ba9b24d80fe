"""How hypothesis runs: the same examples every time, and few of them."""

from hypothesis import settings

settings.register_profile(
    'deterministic', derandomize=True, max_examples=25, deadline=None, database=None
)
settings.load_profile('deterministic')
