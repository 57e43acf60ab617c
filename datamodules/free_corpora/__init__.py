"""Free music that a machine with Debian's packages, or with copies of them, can turn into a corpus."""
