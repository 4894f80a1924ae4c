"""The daemon: start-up, the loop, the configuration on the disk, systemd."""
