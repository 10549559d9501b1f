"""Submit, follow and stop jobs on a Ray cluster through its dashboard, without Ray on this machine."""
