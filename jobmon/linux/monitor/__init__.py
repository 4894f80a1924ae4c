"""What a run says, or is asked, while it lives: readiness, notifications, its standard error."""
