/*
 * net_request.c
 *	  One request: its options, and the callbacks that curl calls for it.
 *
 * Nothing in a callback may raise an error, allocate from a memory context or
 * look for interrupts: curl's frames are below it.  A callback that cannot go
 * on leaves a note and returns what makes curl stop.
 */
#include "postgres.h"

#include <sys/socket.h>
#include <unistd.h>

#include "mb/pg_wchar.h"

#include "net/net_int.h"

#define UPLOAD_BUFFER		(256 * 1024L)
#define SMALL_BODY			(64 * 1024)

/* A connection that nobody used for so long is not used again: who is on the
 * way may have forgotten it, which only a request that is lost would tell. */
#define IDLE_SECONDS		30L

static bool keep_answer(SwarmNetState *state, const char *data, size_t length);
static size_t read_body(char *buffer, size_t size, size_t n, void *arg);
static int	seek_body(void *arg, curl_off_t offset, int origin);
static size_t write_answer(char *data, size_t size, size_t n, void *arg);
static size_t write_header(char *data, size_t size, size_t n, void *arg);
static curl_socket_t open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address);
static int	count_start(void *arg, char *remote, char *local, int remote_port, int local_port);

void
swarm_net_url(SwarmNetRequest *request, const char *url)
{
	free(request->net->url);
	request->net->url = strdup(url);
	if (request->net->url == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

void
swarm_net_header(SwarmNetRequest *request, const char *name, const char *value)
{
	/* curl: "Name:" removes a header, "Name;" sends one without a value */
	char	   *line = *value ? psprintf("%s: %s", name, value) : psprintf("%s;", name);
	struct curl_slist *more = curl_slist_append(request->net->headers, line);

	if (more == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	request->net->headers = more;
}

void
swarm_net_answer(SwarmNetRequest *request, int status, const char *head,
				 const char *body, size_t length)
{
	SwarmNetState *state = request->net;

	state->answered = true;
	state->answer_code = CURLE_OK;
	request->status = status;
	request->sent = request->body.read;
	request->received = length;
	state->head_length = Min(strlen(head), NET_HEADER_ROOM);
	memcpy(state->head, head, state->head_length);
	if (length > 0 && !keep_answer(state, body, length))
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

void
swarm_net_unreachable(SwarmNetRequest *request, const char *why)
{
	request->net->answered = true;
	request->net->answer_code = CURLE_COULDNT_CONNECT;
	swarm_net_text(request->net->message, sizeof(request->net->message), why);
}

void
swarm_net_unacceptable(SwarmNetRequest *request, const char *why)
{
	swarm_net_unreachable(request, why);
	request->net->answer_code = CURLE_ABORTED_BY_CALLBACK;
}

void
swarm_net_text(char *to, size_t room, const char *from)
{
	int			length = (int) strlen(from);
	bool		good = pg_verifymbstr(from, length, true);

	length = good ? pg_mbcliplen(from, length, (int) room - 1) : Min(length, (int) room - 1);
	for (int i = 0; i < length; i++)
		to[i] = good || !IS_HIGHBIT_SET(from[i]) ? from[i] : '?';
	to[length] = '\0';
}

/*
 * swarm_net_attempt_reset: forget the last attempt: what it sent and got.
 */
void
swarm_net_attempt_reset(SwarmNetState *state)
{
	SwarmNetRequest *request = state->request;

	curl_slist_free_all(state->headers);
	state->headers = NULL;
	state->head_length = 0;
	state->starts = 0;
	state->kept = false;
	state->answered = false;
	state->message[0] = '\0';
	state->note = NULL;
	state->note_errno = 0;
	request->body.read = 0;
	request->answer = "";
	request->answer_length = 0;
	request->status = 0;
	request->curl_code = 0;
	request->received = 0;
	request->sent = 0;
	request->error_name[0] = '\0';
	request->error_text[0] = '\0';
	if (request->sink >= 0 &&
		(ftruncate(request->sink, 0) != 0 || lseek(request->sink, 0, SEEK_SET) < 0))
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not empty a temporary file: %m")));
}

#define SET(option, value) \
	do { if (curl_easy_setopt(easy, option, value) != CURLE_OK) ok = false; } while (0)

/*
 * swarm_net_easy: a handle for the next attempt; url and headers are set.
 * Raises nothing; NULL when memory is short or curl is built without
 * something that is needed.
 */
CURL *
swarm_net_easy(SwarmNetState *state)
{
	SwarmNetRequest *request = state->request;
	CURL	   *easy = curl_easy_init();
	int			stall_ms = request->stall_ms ? request->stall_ms : swarm_net_stall_timeout_ms;
	bool		has_body = strcmp(request->method, "PUT") == 0 || strcmp(request->method, "POST") == 0;
	bool		ok = true;

	if (easy == NULL)
		return NULL;

	/*
	 * Asking first (Expect: 100-continue) costs a second wherever nobody
	 * answers that.
	 */
	if (has_body && request->at_once)
	{
		struct curl_slist *more = curl_slist_append(state->headers, "Expect:");

		if (more != NULL)
			state->headers = more;
	}
	SET(CURLOPT_URL, state->url);
	SET(CURLOPT_PATH_AS_IS, 1L);
	SET(CURLOPT_PROTOCOLS_STR, "http,https");
	SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_HTTPHEADER, state->headers);
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_QUICK_EXIT, 1L);
	SET(CURLOPT_TCP_NODELAY, 1L);
	SET(CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	SET(CURLOPT_PROXY, swarm_net_proxy ? swarm_net_proxy : "");
	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	if (request->ca_file != NULL)
		SET(CURLOPT_CAINFO, request->ca_file);
	SET(CURLOPT_MAXAGE_CONN, IDLE_SECONDS);
	SET(CURLOPT_FRESH_CONNECT, state->fresh ? 1L : 0L);
	SET(CURLOPT_CONNECTTIMEOUT_MS, (long) swarm_net_connect_timeout_ms);
	SET(CURLOPT_LOW_SPEED_LIMIT, 1L);
	SET(CURLOPT_LOW_SPEED_TIME, (stall_ms + 999L) / 1000);
	SET(CURLOPT_TIMEOUT_MS, (long) (request->timeout_ms ? request->timeout_ms : swarm_net_timeout_ms));
	SET(CURLOPT_ERRORBUFFER, state->message);
	SET(CURLOPT_PRIVATE, (void *) state);
	SET(CURLOPT_HEADERFUNCTION, write_header);
	SET(CURLOPT_HEADERDATA, (void *) state);
	SET(CURLOPT_WRITEFUNCTION, write_answer);
	SET(CURLOPT_WRITEDATA, (void *) state);
	SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
	SET(CURLOPT_OPENSOCKETDATA, (void *) state);
	SET(CURLOPT_PREREQFUNCTION, count_start);
	SET(CURLOPT_PREREQDATA, (void *) state);
	if (strcmp(request->method, "HEAD") == 0)
		SET(CURLOPT_NOBODY, 1L);
	else if (has_body)
	{
		SET(CURLOPT_UPLOAD, 1L);
		SET(CURLOPT_READFUNCTION, read_body);
		SET(CURLOPT_READDATA, (void *) state);
		SET(CURLOPT_SEEKFUNCTION, seek_body);
		SET(CURLOPT_SEEKDATA, (void *) state);
		SET(CURLOPT_INFILESIZE_LARGE, (curl_off_t) request->body.length);
		if (request->body.length > SMALL_BODY)
			SET(CURLOPT_UPLOAD_BUFFERSIZE, UPLOAD_BUFFER);
	}
	SET(CURLOPT_CUSTOMREQUEST, request->method);
	if (!ok)
	{
		curl_easy_cleanup(easy);
		return NULL;
	}
	return easy;
}

/* ------------------------------------------------------------------------
 * Callbacks
 * ------------------------------------------------------------------------ */

static size_t
read_body(char *buffer, size_t size, size_t n, void *arg)
{
	SwarmNetState *state = arg;
	SwarmNetBody *body = &state->request->body;
	int64		want = Min((int64) (size * n), body->length - body->read);
	ssize_t		got;

	if (want <= 0)
		return 0;
	if (body->fd < 0)
	{
		for (got = 0; got < want;)
		{
			int64		length = want - got;
			const char *piece = swarm_net_body_at(body, body->read + got, &length);

			memcpy(buffer + got, piece, length);
			got += length;
		}
	}
	else
	{
		do
			got = pread(body->fd, buffer, want, body->offset + body->read);
		while (got < 0 && errno == EINTR);
		if (got <= 0)
		{
			state->note = got == 0 ? "the source became shorter while it was sent" :
				"could not read the source";
			state->note_errno = got < 0 ? errno : 0;
			return CURL_READFUNC_ABORT;
		}
	}
	body->read += got;
	return got;
}

/* seek_body: curl wants to send from there again, on another connection. */
static int
seek_body(void *arg, curl_off_t offset, int origin)
{
	SwarmNetBody *body = &((SwarmNetState *) arg)->request->body;

	if (origin != SEEK_SET || offset < 0 || offset > body->length)
		return CURL_SEEKFUNC_FAIL;
	body->read = offset;
	return CURL_SEEKFUNC_OK;
}

static size_t
write_answer(char *data, size_t size, size_t n, void *arg)
{
	SwarmNetState *state = arg;
	SwarmNetRequest *request = state->request;
	size_t		length = size * n;
	long		status = 0;

	curl_easy_getinfo(state->easy, CURLINFO_RESPONSE_CODE, &status);
	if (status < 200 || status > 299)
	{
		/* of an error the beginning is enough */
		size_t		keep = request->answer_length >= NET_ANSWER_ERROR ? 0 :
		Min(length, NET_ANSWER_ERROR - request->answer_length);

		request->received += length;
		if (keep == 0)
			return length;
		length = keep;
	}
	else
	{
		request->received += length;
		if (request->answer_limit > 0 && request->received > request->answer_limit)
		{
			state->note = "the answer is larger than allowed";
			return 0;
		}
		if (request->sink >= 0)
		{
			size_t		done = 0;

			while (done < length)
			{
				ssize_t		w = write(request->sink, data + done, length - done);

				if (w < 0 && errno == EINTR)
					continue;
				if (w <= 0)
				{
					state->note = "could not write the answer to a temporary file";
					state->note_errno = w < 0 ? errno : ENOSPC;
					return 0;
				}
				done += w;
			}
			return size * n;
		}
	}
	if (!keep_answer(state, data, length))
	{
		state->note = "out of memory";
		return 0;
	}
	return size * n;
}

/* keep_answer: more of it; false if memory is short. */
static bool
keep_answer(SwarmNetState *state, const char *data, size_t length)
{
	SwarmNetRequest *request = state->request;

	if (request->answer_length + length + 1 > state->answer_room)
	{
		size_t		room = Max(state->answer_room * 2, request->answer_length + length + 1);
		char	   *larger;

		room = Max(room, 4096);
		larger = realloc(state->answer, room);
		if (larger == NULL)
			return false;
		state->answer = larger;
		state->answer_room = room;
	}
	memcpy(state->answer + request->answer_length, data, length);
	request->answer_length += length;
	state->answer[request->answer_length] = '\0';
	request->answer = state->answer;
	return true;
}

/* write_header: keep the lines of the last answer (after 100 Continue). */
static size_t
write_header(char *data, size_t size, size_t n, void *arg)
{
	SwarmNetState *state = arg;
	size_t		length = size * n;

	if (length >= 5 && memcmp(data, "HTTP/", 5) == 0)
	{
		long		status = 0;

		state->head_length = 0;
		curl_easy_getinfo(state->easy, CURLINFO_RESPONSE_CODE, &status);
		state->request->status = (int) status;
	}
	if (state->head_length + length < NET_HEADER_ROOM)
	{
		memcpy(state->head + state->head_length, data, length);
		state->head_length += length;
	}
	return length;
}

static curl_socket_t
open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	SwarmNetState *state = arg;
	bool		proxied = swarm_net_proxy != NULL && swarm_net_proxy[0] != '\0';

	if (!proxied &&
		!swarm_net_address_allowed(&address->addr, state->request->host_is_literal))
	{
		state->note = "the endpoint's address is not allowed";
		return CURL_SOCKET_BAD;
	}
	return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

/*
 * count_start: curl repeats a request by itself when a kept connection turns
 * out to be closed; that is an attempt too.
 */
static int
count_start(void *arg, char *remote, char *local, int remote_port, int local_port)
{
	((SwarmNetState *) arg)->starts++;
	return CURL_PREREQFUNC_OK;
}

/* ------------------------------------------------------------------------
 * Headers of the answer
 * ------------------------------------------------------------------------ */

bool
swarm_net_answer_headers(const SwarmNetRequest *request, const char *prefix,
						 int *position, char **name, char **value)
{
	const SwarmNetState *state = request->net;
	size_t		prefix_length = strlen(prefix);

	while (*position < (int) state->head_length)
	{
		const char *line = state->head + *position;
		const char *end = memchr(line, '\n', state->head_length - *position);
		const char *colon;
		const char *stop;

		if (end == NULL)
			end = state->head + state->head_length;
		*position = (int) (end - state->head) + 1;
		colon = memchr(line, ':', end - line);
		if (colon == NULL || (size_t) (colon - line) < prefix_length ||
			pg_strncasecmp(line, prefix, prefix_length) != 0)
			continue;
		*name = pnstrdup(line, colon - line);
		colon++;
		while (colon < end && (*colon == ' ' || *colon == '\t'))
			colon++;
		stop = end;
		while (stop > colon && (stop[-1] == '\r' || stop[-1] == ' '))
			stop--;
		*value = pnstrdup(colon, stop - colon);
		return true;
	}
	return false;
}

char *
swarm_net_answer_header(const SwarmNetRequest *request, const char *name)
{
	int			position = 0;
	char	   *found;
	char	   *value;

	while (swarm_net_answer_headers(request, name, &position, &found, &value))
	{
		if (pg_strcasecmp(found, name) == 0)
			return value;
	}
	return NULL;
}
