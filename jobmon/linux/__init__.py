"""The kernel's side of JobMon: the only part that makes system calls. Imports policy and protocol."""
