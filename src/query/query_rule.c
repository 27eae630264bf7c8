#include "postgres.h"
#include "base/clock.h"
#include "query/query_int.h"
TimestampTz swarm_rule_due(void) { return DT_NOEND; }
void swarm_rule_tick(void) {}
