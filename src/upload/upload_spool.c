/*
 * upload_spool.c
 *	  Bytes that are collected, perhaps compressed on their way, to be sent or
 *	  read any number of times without a transaction.
 *
 * They are kept in blocks of memory, of which a process has few (POOL_BLOCKS)
 * and which it uses again and again: fresh memory costs the kernel more than
 * the copy.  TOAST is read straight into them.  What does not fit goes to a
 * temporary file that has lost its name before anything is sent, so that
 * nothing of it survives the process.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"

#include "base/compat.h"
#include "upload/upload_int.h"

#define POOL_BLOCKS		240		/* 30 MB, the most of them */
#define POOL_KEPT		8		/* while nobody uses one */
#define WRITE_SIZE		(1024 * 1024)

/* Before each block there is room for the header of a varlena. */
#define BLOCK_HEAD		64
#define BLOCK_STRIDE	(SWARM_NET_BLOCK + BLOCK_HEAD)
#define HUGE_PAGE		(2 * 1024 * 1024)

/*
 * The blocks, one after another.  Those below pool_made exist, and those of
 * them that are in pool_free are free; all others belong to spools.
 */
static char *pool = NULL;
static char *pool_free[POOL_BLOCKS];
static int	pool_nfree = 0;
static int	pool_made = 0;
static int	pool_used = 0;

static bool pool_start(void);
static void pool_shrink(void);
static char *take_block(void);
static void give_block(char *block);
static void give_blocks(SwarmSpool *spool);
static void check_limit(SwarmSpool *spool, size_t length);
static char *next_block(SwarmSpool *spool);
static void append(void *arg, const char *data, size_t length);
static void append_to_file(SwarmSpool *spool, const char *data, size_t length);
static void keep_descriptor(SwarmSpool *spool);
static void spool_end(void *arg);

/* ------------------------------------------------------------------------
 * Blocks
 * ------------------------------------------------------------------------ */

static int
blocks_of(int64 length)
{
	return (int) Min((length + SWARM_NET_BLOCK - 1) / SWARM_NET_BLOCK, INT_MAX);
}

/* swarm_spool_fits: may a source of that size be kept in memory at all? */
bool
swarm_spool_fits(int64 length)
{
	return blocks_of(length) <= POOL_BLOCKS / 2;
}

/* swarm_spool_has_room: and now? */
bool
swarm_spool_has_room(int64 length)
{
	return pool_used + blocks_of(length) <= POOL_BLOCKS;
}

/*
 * pool_start: addresses for all blocks; the kernel finds memory when they are
 * written, by huge pages if it can: 2 MB at a time instead of 4 kB.
 */
static bool
pool_start(void)
{
	size_t		size = TYPEALIGN(HUGE_PAGE, POOL_BLOCKS * BLOCK_STRIDE);
	char	   *start;

	if (pool != NULL)
		return true;
	start = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (start == MAP_FAILED)
		return false;
	pool = (char *) TYPEALIGN(HUGE_PAGE, start);
#ifdef MADV_HUGEPAGE
	(void) madvise(pool, size, MADV_HUGEPAGE);
#endif
	return true;
}

/* pool_shrink: nobody uses one: give the memory back but for the first few. */
static void
pool_shrink(void)
{
	char	   *rest = (char *) TYPEALIGN(HUGE_PAGE, pool + POOL_KEPT * BLOCK_STRIDE);
	char	   *end = (char *) TYPEALIGN(HUGE_PAGE, pool + pool_made * BLOCK_STRIDE);

	if (end > rest)
		(void) madvise(rest, end - rest, MADV_DONTNEED);
	pool_made = 0;
	pool_nfree = 0;
}

/* take_block: NULL when there is none left. */
static char *
take_block(void)
{
	char	   *block = NULL;

	if (pool_nfree > 0)
		block = pool_free[--pool_nfree];
	else if (pool_made < POOL_BLOCKS && pool_start())
		block = pool + pool_made++ * BLOCK_STRIDE + BLOCK_HEAD;
	if (block != NULL)
		pool_used++;
	return block;
}

static void
give_block(char *block)
{
	pool_free[pool_nfree++] = block;
	pool_used--;
	if (pool_used == 0)
		pool_shrink();
}

static void
give_blocks(SwarmSpool *spool)
{
	while (spool->nblocks > 0)
		give_block(spool->blocks[--spool->nblocks]);
}

/* ------------------------------------------------------------------------
 * Spool
 * ------------------------------------------------------------------------ */

SwarmSpool *
swarm_spool_create(MemoryContext context, int64 limit, SwarmCodec *codec)
{
	SwarmSpool *spool = MemoryContextAllocZero(context, sizeof(SwarmSpool));

	spool->context = context;
	spool->file = -1;
	spool->fd = -1;
	spool->limit = limit;
	spool->codec = codec;
	spool->callback.func = spool_end;
	spool->callback.arg = spool;
	MemoryContextRegisterResetCallback(context, &spool->callback);
	return spool;
}

static void
spool_end(void *arg)
{
	SwarmSpool *spool = arg;

	give_blocks(spool);
	if (spool->fd >= 0)
	{
		close(spool->fd);
		ReleaseExternalFD();
	}
	spool->fd = -1;
}

/* check_limit: it is on what comes, not on what is kept of it. */
static void
check_limit(SwarmSpool *spool, size_t length)
{
	spool->taken += length;
	if (spool->limit > 0 && spool->taken > spool->limit)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("file exceeds %dMB limit", (int) (spool->limit / (1024 * 1024))),
				 errhint("The limit is pg_swarm.s3_max_file_size.")));
}

void
swarm_spool_write(SwarmSpool *spool, const char *data, size_t length)
{
	check_limit(spool, length);
	if (spool->codec != NULL)
		swarm_codec_write(spool->codec, data, length, append, spool);
	else
		append(spool, data, length);
}

/* next_block: one more for the spool; NULL when there is none left. */
static char *
next_block(SwarmSpool *spool)
{
	char	   *block;

	if (spool->nblocks == spool->room)
	{
		int			room = Max(spool->room * 2, 8);

		spool->blocks = spool->blocks ? repalloc(spool->blocks, room * sizeof(char *)) :
			MemoryContextAlloc(spool->context, room * sizeof(char *));
		spool->room = room;
	}
	block = take_block();
	if (block != NULL)
		spool->blocks[spool->nblocks++] = block;
	return block;
}

/*
 * swarm_spool_varlena: where the next SWARM_NET_BLOCK bytes will be kept, as a
 * varlena to be filled by the server's functions; NULL if they have to be
 * written.  What is there then is said to swarm_spool_filled().
 */
struct varlena *
swarm_spool_varlena(SwarmSpool *spool)
{
	char	   *block;

	if (spool->codec != NULL || spool->file >= 0 || spool->length % SWARM_NET_BLOCK != 0)
		return NULL;
	block = next_block(spool);
	return block ? (struct varlena *) (block - VARHDRSZ) : NULL;
}

void
swarm_spool_filled(SwarmSpool *spool, size_t length)
{
	check_limit(spool, length);
	spool->length += length;
}

static void
append(void *arg, const char *data, size_t length)
{
	SwarmSpool *spool = arg;

	while (length > 0 && spool->file < 0)
	{
		size_t		at = spool->length % SWARM_NET_BLOCK;
		size_t		n = Min(length, SWARM_NET_BLOCK - at);

		if (at == 0 && next_block(spool) == NULL)
		{
			swarm_spool_to_file(spool);
			break;
		}
		memcpy(spool->blocks[spool->nblocks - 1] + at, data, n);
		spool->length += n;
		data += n;
		length -= n;
	}
	if (length > 0)
		append_to_file(spool, data, length);
}

static void
append_to_file(SwarmSpool *spool, const char *data, size_t length)
{
	while (length > 0)
	{
		int			n = (int) Min(length, WRITE_SIZE);

		errno = 0;
		if (FileWrite(spool->file, (char *) data, n, spool->length, PG_WAIT_EXTENSION) != n)
		{
			if (errno == 0)
				errno = ENOSPC;
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not write a temporary file: %m")));
		}
		spool->length += n;
		data += n;
		length -= n;
	}
}

/* swarm_spool_to_file: what is there and what comes goes to a temporary file. */
void
swarm_spool_to_file(SwarmSpool *spool)
{
	int64		length = spool->length;

	if (spool->file >= 0)
		return;
	spool->file = OpenTemporaryFile(false);
	spool->length = 0;
	for (int i = 0; i < spool->nblocks; i++)
		append_to_file(spool, spool->blocks[i], Min(length - spool->length, SWARM_NET_BLOCK));
	give_blocks(spool);
}

/* keep_descriptor: our own descriptor of the file, which then loses its name. */
static void
keep_descriptor(SwarmSpool *spool)
{
	int			fd = -1;

	if (AcquireExternalFD())
	{
		fd = fcntl(FileGetRawDesc(spool->file), F_DUPFD_CLOEXEC, 0);
		if (fd < 0)
			ReleaseExternalFD();
	}
	if (fd < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not keep a temporary file open: %m"),
				 errhint("Raise max_files_per_process, or lower max_parallel of the server.")));
	spool->fd = fd;
	FileClose(spool->file);
	spool->file = -1;
}

void
swarm_spool_finish(SwarmSpool *spool, SwarmNetBody *body)
{
	if (spool->codec != NULL)
	{
		swarm_codec_end(spool->codec, append, spool);
		swarm_codec_free(spool->codec);
		spool->codec = NULL;
	}
	memset(body, 0, sizeof(*body));
	body->fd = -1;
	body->length = spool->length;
	if (spool->file >= 0)
	{
		keep_descriptor(spool);
		body->fd = spool->fd;
	}
	else if (spool->length > 0)
		body->blocks = spool->blocks;
	else
		body->memory = "";
}

int
swarm_spool_descriptor(SwarmSpool *spool)
{
	swarm_spool_to_file(spool);
	keep_descriptor(spool);
	return spool->fd;
}

/* swarm_spool_adopt: the spool is that file. */
void
swarm_spool_adopt(SwarmSpool *spool, int fd, int64 length, SwarmNetBody *body)
{
	if (!AcquireExternalFD())
	{
		close(fd);
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES), errmsg("too many open files")));
	}
	spool->fd = fd;
	spool->length = length;
	memset(body, 0, sizeof(*body));
	body->fd = fd;
	body->length = length;
}

/* swarm_spool_copy: what a file has from its beginning, `length` bytes of it. */
void
swarm_spool_copy(SwarmSpool *spool, int fd, int64 length)
{
	char	   *buffer = palloc(SWARM_NET_BLOCK);

	for (int64 at = 0; at < length;)
	{
		ssize_t		n = pread(fd, buffer, Min(length - at, SWARM_NET_BLOCK), at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			ereport(ERROR,
					(n < 0 ? errcode_for_file_access() : errcode(ERRCODE_NO_DATA),
					 n < 0 ? errmsg("could not read the source: %m") :
					 errmsg("the source became shorter while it was read")));
		swarm_spool_write(spool, buffer, n);
		at += n;
		CHECK_FOR_INTERRUPTS();
	}
	pfree(buffer);
}
