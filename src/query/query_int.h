/*
 * query_int.h
 *	  Private parts of module query.
 */
#ifndef SWARM_QUERY_QUERY_INT_H
#define SWARM_QUERY_QUERY_INT_H

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "nodes/execnodes.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/jsonb.h"

#include "query/query.h"

/* ------------------------------------------------------------------------
 * States (query_state.c)
 * ------------------------------------------------------------------------ */

/* The order is that of the SQL enum swarm.query_state. */
typedef enum SwarmQueryState
{
	SWARM_QUERY_INIT,
	SWARM_QUERY_RUNNING,
	SWARM_QUERY_PAUSED,
	SWARM_QUERY_COMPLETE,
	SWARM_QUERY_TERMINATED,
	SWARM_QUERY_ERROR,
	SWARM_QUERY_STATES
} SwarmQueryState;

typedef enum SwarmQueryEvent
{
	SWARM_QUERY_START,
	SWARM_QUERY_PAUSE,
	SWARM_QUERY_RESUME,
	SWARM_QUERY_FINISH,
	SWARM_QUERY_FAIL,
	SWARM_QUERY_TERMINATE,
	SWARM_QUERY_EVENTS,

	/* not edges: what is done to a query without changing its state */
	SWARM_QUERY_COMMAND = SWARM_QUERY_EVENTS,
	SWARM_QUERY_MODE,
	SWARM_QUERY_MODEL,
	SWARM_QUERY_OPTIMIZE,
	SWARM_QUERY_APPROVE,
	SWARM_QUERY_ACTIONS
} SwarmQueryEvent;

typedef struct SwarmQueryTransition
{
	SwarmQueryState from;
	SwarmQueryEvent event;
	SwarmQueryState to;
	const char *why;
} SwarmQueryTransition;

extern const char *swarm_query_state_name(SwarmQueryState state);
extern const char *swarm_query_event_name(SwarmQueryEvent event);
extern SwarmQueryState swarm_query_state_parse(const char *name);
extern bool swarm_query_is_final(SwarmQueryState state);

/* The state after `event`; false if the table has no such edge. */
extern bool swarm_query_next(SwarmQueryState from, SwarmQueryEvent event,
							 SwarmQueryState *to);

/* The same; raises 55000.  Of an action: may it be done in this state? */
extern SwarmQueryState swarm_query_require(SwarmQueryState from, SwarmQueryEvent event,
										   int64 query);

/* ------------------------------------------------------------------------
 * Shared memory (query_shmem.c)
 * ------------------------------------------------------------------------ */

typedef enum SwarmQueryKind
{
	SWARM_KIND_STATEMENT,		/* 'sql': a runner executes it */
	SWARM_KIND_SESSION,			/* 'session': a session that has registered */
	SWARM_KIND_TURN				/* 'llm': a runner is at a turn of it */
} SwarmQueryKind;

/* Bits of a request, read by its process without a lock. */
#define SWARM_REQ_PAUSE		0x01
#define SWARM_REQ_COMMAND	0x02
#define SWARM_REQ_MODE		0x04	/* read-only, from now on */
#define SWARM_REQ_HOLD		0x08	/* the parallel workers shall wait too */
#define SWARM_REQ_DRAIN		0x10	/* pause of a turn: how */
#define SWARM_REQ_NOW		0x20
#define SWARM_REQ_STOP		0x40	/* terminate */

#define SWARM_QUERY_DETAIL	160
#define SWARM_MAILBOXES		16
#define SWARM_MAIL_SIZE		16384

/*
 * A process that works on a query; its number is that of its PGPROC.
 * `request` is atomic; all else is guarded by swarm_query_lock.  Identity is
 * (slot, query), a pid is only for signals, sent under the lock.
 */
typedef struct SwarmQuerySlot
{
	int			pid;			/* 0 = free */
	Oid			database;
	Oid			owner;
	int64		query;			/* 0: a session that the scheduler shall name */
	SwarmQueryKind kind;
	Latch	   *latch;
	int			leader;			/* slot of a parallel worker's leader, else -1 */
	pg_atomic_uint32 request;
	ConditionVariable changed;	/* state, mailbox, or the process is gone */

	/* what is wanted */
	Oid			actor;			/* who wanted it last; 0 = the scheduler */
	TimestampTz resume_at;		/* end of the pause, or no end */
	TimestampTz asked_at;		/* when the pause was asked for */
	TimestampTz kill_at;		/* when cancelling was not enough, or no end */
	bool		read_only;
	bool		ended;			/* a terminated session: not a query any more */
	int			mailbox;		/* with SWARM_REQ_COMMAND */

	/* what is */
	SwarmQueryState state;		/* running or paused */
	bool		by_workers;		/* paused as all parallel workers are held */
	char		node[NAMEDATALEN];	/* where it is held, or what keeps it */
	TimestampTz started_at;
	TimestampTz paused_at;
	TimestampTz resumed_at;
	int64		paused_us;		/* of all pauses that are over */
	int			pauses;

	/* how many events it may tell now, and since when that is so */
	double		tokens;
	TimestampTz tokens_at;
} SwarmQuerySlot;

/* A command on its way, and its result. */
typedef struct SwarmMailbox
{
	bool		used;
	bool		done;
	bool		abandoned;		/* nobody waits for the result */
	char		sqlstate[6];	/* "00000" = success */
	char		command[SWARM_MAIL_SIZE];
	char		result[SWARM_MAIL_SIZE];
} SwarmMailbox;

/* Something has happened to a running query; the scheduler writes it down. */
typedef struct SwarmQueryNews
{
	uint64		number;			/* 0 = free */
	int			place;			/* in shared memory */
	Oid			database;
	Oid			actor;
	int64		query;
	TimestampTz at;
	SwarmQueryEvent event;
	SwarmQueryState from;
	SwarmQueryState to;
	int64		paused_us;
	int			pauses;
	char		detail[SWARM_QUERY_DETAIL];
} SwarmQueryNews;

extern LWLock *swarm_query_lock;

extern void swarm_query_shmem_init(void);
extern int	swarm_query_slots(void);
extern SwarmQuerySlot *swarm_query_slot(int i);
extern SwarmMailbox *swarm_query_mailbox(int i);

/* This process's slot, NULL while it works on no query. */
extern SwarmQuerySlot *swarm_query_me;

/*
 * Take and leave the slot of this process.  Leaving frees what waits for it
 * and, with `news`, tells the scheduler.  Idempotent.
 */
extern void swarm_query_attach(int64 query, SwarmQueryKind kind, Oid owner,
							   bool read_only);
extern void swarm_query_attach_worker(int leader);
extern void swarm_query_detach(const char *news);

/*
 * The slot that works on a query of this database, and its state: running as
 * soon as somebody has resumed it; lock held.
 */
extern SwarmQuerySlot *swarm_query_find(int64 query);
extern SwarmQueryState swarm_query_live_state(SwarmQuerySlot *slot);

/*
 * Is there one, or news of it that is not written down?  All of this database,
 * in order, in memory of the caller.  Both take the lock.
 */
extern bool swarm_query_is_live(int64 query);
extern int	swarm_query_live_ids(int64 **ids);
extern bool swarm_query_is_among(int64 query, const int64 *ids, int n);
extern int	swarm_query_slot_number(const SwarmQuerySlot *slot);

/* Request something, with the lock held: bits, latch, and the signal. */
extern void swarm_query_ask(SwarmQuerySlot *slot, uint32 bits, bool interrupt);
extern void swarm_query_ask_workers(SwarmQuerySlot *slot, uint32 bits);

/* Resume, with the lock held.  True if it was paused or about to be. */
extern bool swarm_query_unpause(SwarmQuerySlot *slot, Oid actor);

/* Terminate, with the lock held: cancel now, end the process later if need be. */
extern void swarm_query_stop(SwarmQuerySlot *slot, Oid actor);

/* Note an event of the query of `slot`; lock held. */
extern void swarm_query_tell(SwarmQuerySlot *slot, SwarmQueryEvent event,
							 SwarmQueryState from, SwarmQueryState to,
							 const char *detail);

/*
 * Copy the news of this database, oldest first; forget, at commit, those that
 * are written down.  The number of the newest, 0 if there are none.
 */
extern int	swarm_query_take_news(SwarmQueryNews **news);
extern void swarm_query_forget_news(const SwarmQueryNews *news, int n);
extern uint64 swarm_query_newest_news(void);

/* query_control_sql.c: a rule acts, which may leave a command behind */
extern bool swarm_query_may_post;
extern int64 swarm_query_news_lost(void);

/* Wake the scheduler of this database, and those who wait for a query. */
extern void swarm_query_wake_scheduler(Oid database);
extern ConditionVariable *swarm_query_waiters(int64 query);
extern void swarm_query_ring(int64 query);	/* at commit */

/* What the scheduler has to look at; shared by all sessions of a database. */
extern void swarm_query_watch(void);	/* at commit: rows have changed */
extern uint32 swarm_query_watch_count(void);

/* ------------------------------------------------------------------------
 * In the process that runs the query
 * ------------------------------------------------------------------------ */

/* query_pause.c */
extern void swarm_query_pause_init(void);
extern void swarm_query_listen(void);	/* signal handler, PL/pgSQL */

/* query_command.c: run the command in the slot's mailbox. */
extern void swarm_query_run_command(SwarmQuerySlot *slot);

/* query_run.c: execute text; rows as jsonb text within limits. */
typedef struct SwarmQueryRows
{
	uint64		count;
	int			limit;			/* of rows kept */
	Size		size;			/* of bytes kept */
	bool		truncated;
	int			columns;
	bool		as_value;		/* a single value as its text */
	char	   *value;
	StringInfoData text;
	const char *separator;
} SwarmQueryRows;

extern int	swarm_query_execute(const char *sql, bool read_only, SwarmQueryRows *rows);

/* The statement that makes `table` of the rows of `body`.  Error 22023: it is not one SELECT. */
extern char *swarm_query_into(const char *body, const char *table);

/* ------------------------------------------------------------------------
 * The table (query_store.c); in a transaction
 * ------------------------------------------------------------------------ */

typedef struct SwarmQueryRow
{
	int64		id;
	char	   *kind;
	Oid			owner;
	char	   *body;			/* or NULL */
	char	   *model;
	char	   *permission_mode;
	SwarmQueryState state;
	char	   *wanted;			/* of an llm query: run, pause, terminate */
	char	   *pause_mode;
	bool		notify;
	int64		job;			/* 0 = none */
	bool		approval;		/* a request is open */
	char	   *result_table;	/* qualified and quoted, or NULL */
} SwarmQueryRow;

/*
 * The row, locked if `lock`; false if there is none.  swarm_query_get raises
 * 42704 unless it is there and the caller is a member of the owner.
 */
extern bool swarm_query_fetch(int64 id, bool lock, SwarmQueryRow *row);

/* Lock the row without waiting; false if somebody else has it locked. */
extern bool swarm_query_try_lock(int64 id);
extern void swarm_query_get(int64 id, bool lock, SwarmQueryRow *row);

/*
 * A commit can be seen a moment before other sessions are told that the
 * catalogs have changed, and locks are released after that.  Who ends a query
 * holds a lock until then, and who has waited for its end waits for that too:
 * so what the query has made can be used.  (The row's own xmin is of a
 * subtransaction, whose lock is gone before the commit.)
 */
extern void swarm_query_lock_end(int64 id);
extern void swarm_query_await_end(int64 id);

/* May the current role control the query of `row` (`as_owner`: act as its owner)?  Raises 42501. */
extern void swarm_query_check_control(const SwarmQueryRow *row, bool as_owner);

/* An edge: the row's new state, an event, NOTIFY, who waits at commit. */
extern void swarm_query_prune(TimestampTz before);
extern void swarm_query_copy_text(char *to, const char *from, Size size);
extern void swarm_query_move(SwarmQueryRow *row, SwarmQueryEvent event, Oid actor,
							 const char *detail);

/* Only the event. */
extern void swarm_query_log(int64 id, TimestampTz at, Oid actor, SwarmQueryEvent event,
							SwarmQueryState from, SwarmQueryState to,
							const char *detail);
extern void swarm_query_notify(int64 id, SwarmQueryState state);

/* A check of text arguments: 22023. */
extern void swarm_query_check_mode(const char *mode);

/* query_start_sql.c: the job of a conversation, and names of models. */
extern void swarm_query_enqueue_turn(const SwarmQueryRow *row);
extern char *swarm_query_resolve_model(const char *name);

/* query_watch.c, query_rule.c, query_alert.c: the scheduler's part. */
extern void swarm_query_watch_init(void);
extern void swarm_rule_init(void);
extern bool swarm_rule_running(void);	/* is the optimizer on? */
extern void swarm_query_alert_init(void);

/* Settings. */
extern bool swarm_query_control;
extern int	swarm_query_max_pause_ms;
extern int	swarm_query_max_pause_action;	/* 0 resume, 1 terminate */
extern int	swarm_query_grace_ms;
extern int	swarm_query_result_rows;
extern int	swarm_query_result_kb;
extern int	swarm_query_result_table_mb;

#endif							/* SWARM_QUERY_QUERY_INT_H */
