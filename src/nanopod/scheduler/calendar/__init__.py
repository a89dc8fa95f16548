"""When functions start by themselves: cron lines and periods as instants. Pure; time zones are arguments."""
