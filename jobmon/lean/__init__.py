"""What the standard library offers, lighter: each module here saves memory or start-up time, measured."""
