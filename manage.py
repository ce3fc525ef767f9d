#!/usr/bin/env python
"""AILB's command line: `manage.py serve` runs the gateway, `manage.py help` lists the rest."""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ailb_project.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
