"""The management API: JSON over HTTP, one file per noun, errors mapped in one place (`errors`)."""
