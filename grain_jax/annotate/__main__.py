"""Bare images to descriptions and boxes, in stages that can be stopped and continued."""

from grain_jax.annotate import main
from grain_jax.command_line import end

if __name__ == "__main__":
    end(main())
