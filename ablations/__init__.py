"""What varies: experiments and studies, and the runner that joins the other packages."""
