"""Cold start: the error on new videos and new users, by how much is known of them."""

from fedjax_vp.coldstart.running import run

__all__ = ["run"]
