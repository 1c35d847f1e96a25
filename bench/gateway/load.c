// A load generator that costs next to nothing and believes nothing: each answer must be its request's own,
// byte for byte, each stream complete, in order, once.
//
//     load closed  PORT KEY SECONDS WARMUP CONNECTIONS            the next request as soon as an answer is there
//     load open    PORT KEY SECONDS WARMUP RATE                   requests when they are due, come what may
//     load streams PORT KEY SECONDS WARMUP CONNECTIONS PACE_US TOKENS   paced streams, the next after the last
//
// Prints one line of JSON. Times are microseconds. What falls into the warm-up is checked, but not measured.
// Open latencies count from when the request was due, not from when it could be sent. `closed` and `open` wait
// for the answers of all that was asked; `streams` hangs up at the end, and says on how many.
#include "wire.h"

#define CONNECTIONS_MAX 16384
#define ANSWER_MAX 65536
#define PATIENCE_NS 10000000000LL

enum Reading { HEAD, LENGTH, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, UNTIL_CLOSE };

typedef struct {
    int fd;  // -1 when closed.
    bool busy, connecting, closes;
    enum Reading reading;
    int status;
    size_t left;
    unsigned number, position, tokens, picked;  // `picked`: bytes of a token that came so far.
    int64_t began_ns, first_ns;
    char token[TOKEN_BYTES + 1], tail[16];
    size_t tail_size;
    Buffer head, body;
} Connection;

typedef struct {
    float *us;
    size_t count, room;
} Samples;

static int poll_fd, port;
static Connection connections[CONNECTIONS_MAX];
static int idle[CONNECTIONS_MAX], idle_count, open_count;
static char request[2048];
static size_t request_size;
static bool streaming;
static unsigned next_number, pace_us, tokens_each;
static int64_t from_ns, until_ns;
static Samples latencies, firsts;
static unsigned long long sent, completed, measured, tokens_measured, tokens_total, errors, wrong, hung_up;
static char complaint[400];

static void sample(Samples *samples, int64_t ns) {
    if (samples->count == samples->room) {
        samples->room = samples->room ? samples->room * 2 : 65536;
        samples->us = realloc(samples->us, samples->room * sizeof(float));
        if (!samples->us) die("realloc");
    }
    samples->us[samples->count++] = ns / 1e3f;
}

static void complain(unsigned long long *counter, const char *what, const char *data, size_t size) {
    if (!complaint[0]) {
        size_t at = snprintf(complaint, 100, "%s: ", what);
        for (size_t i = 0; i < size && at < 350; i++)
            complaint[at++] = data[i] < ' ' || data[i] == '"' || data[i] == '\\' ? ' ' : data[i];
    }
    ++*counter;
}

// --- requests ---

static void make_request(const char *key) {
    char body[1024];
    int size = sprintf(body,
                       "{\"model\":\"bench\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant "
                       "that answers in one short paragraph and says when it does not know.\"},{\"role\":\"user\","
                       "\"content\":\"request 00000000, a token every %09u us\"}],\"temperature\":0.7,"
                       "\"max_tokens\":%8u%s}",
                       pace_us, tokens_each, streaming ? ",\"stream\":true" : "");
    request_size = sprintf(request,
                           "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer %s\r\n"
                           "content-type: application/json\r\naccept: */*\r\nuser-agent: load\r\n"
                           "content-length: %d\r\n\r\n%s",
                           port, key, size, body);
}

static void lose(Connection *one);

static void watch(Connection *one, int how, unsigned what) {
    struct epoll_event event = {what, {.u32 = one - connections}};
    epoll_ctl(poll_fd, how, one->fd, &event);
}

static void transmit(Connection *one) {
    static char *number, *tokens;
    if (!number) {
        number = strstr(request, "request 0") + 8;
        tokens = strstr(request, "\"max_tokens\":") + 13;
    }
    char text[16];
    sprintf(text, "%08x", one->number);
    memcpy(number, text, 8);
    sprintf(text, "%8u", one->tokens);
    memcpy(tokens, text, 8);
    if (send(one->fd, request, request_size, 0) != (ssize_t)request_size) lose(one);
}

static void connect_to_gateway(Connection *one) {
    struct sockaddr_in address = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
    one->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (one->fd < 0) die("socket");
    unblock(one->fd);
    one->connecting = connect(one->fd, (void *)&address, sizeof address) != 0;
    if (one->connecting && errno != EINPROGRESS) die("connect");
    watch(one, EPOLL_CTL_ADD, EPOLLIN | (one->connecting ? EPOLLOUT : 0));
}

static void ask(Connection *one, int64_t began_ns, unsigned tokens) {
    one->busy = true;
    one->closes = false;
    one->reading = HEAD;
    one->head.size = one->body.size = one->tail_size = 0;
    one->number = next_number++;
    one->position = one->picked = 0;
    one->tokens = tokens;
    one->began_ns = began_ns;
    one->first_ns = 0;
    sent++;
    if (one->fd < 0) connect_to_gateway(one);
    if (!one->connecting) transmit(one);
}

static void hang_up(Connection *one) {
    if (one->fd >= 0) close(one->fd);
    one->fd = -1;
    one->connecting = false;
}

static void lose(Connection *one) {
    hang_up(one);
    if (one->busy) complain(&errors, "connection lost", "", 0);
    one->busy = false;
}

// --- answers ---

static void take_token(Connection *one, int64_t now) {
    unsigned number, position;
    unsigned long long made_ns;
    one->token[TOKEN_BYTES] = 0;
    if (sscanf(one->token, TOKEN_FORMAT, &number, &position, &made_ns) != 3 || number != one->number ||
        position != one->position) {
        complain(&wrong, "not the next token", one->token, TOKEN_BYTES);
        return;
    }
    if (!one->position++) {
        one->first_ns = now;
        if (one->began_ns >= from_ns && now < until_ns) sample(&firsts, now - one->began_ns);
    }
    tokens_total++;
    if (now >= from_ns && now < until_ns) {
        tokens_measured++;
        sample(&latencies, now - (int64_t)made_ns);
    }
}

static void take_payload(Connection *one, const char *data, size_t size, int64_t now) {
    if (!streaming || one->status != 200) {
        if (one->body.size + size < ANSWER_MAX) append(&one->body, data, size);
        return;
    }
    const char *end = data + size;
    while (data < end) {
        if (!one->picked) {
            const char *found = memchr(data, '~', end - data);
            const char *stop = found ? found : end;
            size_t rest = stop - data, kept = rest < sizeof one->tail ? rest : sizeof one->tail;
            if (kept < sizeof one->tail) {
                size_t old = one->tail_size + kept > sizeof one->tail ? sizeof one->tail - kept : one->tail_size;
                memmove(one->tail, one->tail + one->tail_size - old, old);
                one->tail_size = old;
            } else {
                one->tail_size = 0;
            }
            memcpy(one->tail + one->tail_size, stop - kept, kept);
            one->tail_size += kept;
            data = stop;
            if (!found) break;
        }
        size_t wanted = TOKEN_BYTES - one->picked, here = end - data;
        if (here > wanted) here = wanted;
        memcpy(one->token + one->picked, data, here);
        one->picked += here;
        data += here;
        if (one->picked == TOKEN_BYTES) {
            take_token(one, now);
            one->picked = 0;
        }
    }
}

static bool is_right(Connection *one) {
    if (streaming)
        return one->position == one->tokens && memmem(one->tail, one->tail_size, "data: [DONE]", 12);
    char text[64];
    int size = sprintf(text, "\"answer %08x: the quick brown fox", one->number);
    const char *at = memmem(one->body.data, one->body.size, text, size);
    if (!at) return false;
    // The filling goes on to its closing quote, without a byte that does not belong.
    static const char FILLING[] = "the quick brown fox jumps over it ";
    at += 18;
    size_t i = 0, room = one->body.data + one->body.size - at;
    while (i < room && at[i] == FILLING[i % 34]) i++;
    return i > 250 && i < room && at[i] == '"';
}

static void complete(Connection *one, int64_t now) {
    one->busy = false;
    if (one->status != 200) complain(&errors, "status", one->body.data, one->body.size);
    else if (!is_right(one)) complain(&wrong, "not the answer", one->body.data, one->body.size);
    else {
        completed++;
        if (now >= from_ns && now < until_ns && !streaming) {
            measured++;
            sample(&latencies, now - one->began_ns);
        }
    }
    if (one->closes) hang_up(one);
}

static bool read_head(Connection *one) {
    *reserve(&one->head, 1) = 0;
    const char *length = header(one->head.data, "content-length");
    const char *encoding = header(one->head.data, "transfer-encoding");
    const char *connection = header(one->head.data, "connection");
    if (one->head.size < 12 || strncmp(one->head.data, "HTTP/1.", 7)) return false;
    one->status = atoi(one->head.data + 9);
    one->closes = connection && !strncasecmp(connection, "close", 5);
    one->left = length ? strtoul(length, NULL, 10) : 0;
    one->reading = encoding ? CHUNK_SIZE : length ? LENGTH : UNTIL_CLOSE;
    one->head.size = 0;
    return true;
}

// One line up to and with its end, gathered in `head`; how many bytes were used, `*whole` when it is there.
static size_t read_line(Connection *one, const char *data, size_t size, bool *whole) {
    const char *end = memchr(data, '\n', size);
    size_t used = end ? (size_t)(end - data + 1) : size;
    append(&one->head, data, used);
    *whole = end != NULL;
    return used;
}

static bool parse(Connection *one, const char *data, size_t size, int64_t now) {
    while (size) {
        size_t used = size;
        bool whole = false;
        if (!one->busy || one->head.size > 32768) return false;
        switch (one->reading) {
        case HEAD:
            used = read_line(one, data, size, &whole);
            if (whole && one->head.size >= 4 && !memcmp(one->head.data + one->head.size - 4, "\r\n\r\n", 4)) {
                if (!read_head(one)) return false;
                if (one->reading == LENGTH && !one->left) complete(one, now);
            }
            break;
        case LENGTH:
        case CHUNK:
            if (used > one->left) used = one->left;
            take_payload(one, data, used, now);
            one->left -= used;
            if (!one->left && one->reading == CHUNK) one->reading = CHUNK_END;
            else if (!one->left) complete(one, now);
            break;
        case CHUNK_SIZE:
            used = read_line(one, data, size, &whole);
            if (whole) {
                *reserve(&one->head, 1) = 0;
                one->left = strtoul(one->head.data, NULL, 16);
                one->head.size = 0;
                one->reading = one->left ? CHUNK : TRAILER;
            }
            break;
        case CHUNK_END:
            used = read_line(one, data, size, &whole);
            if (whole) {
                one->head.size = 0;
                one->reading = CHUNK_SIZE;
            }
            break;
        case TRAILER:
            used = read_line(one, data, size, &whole);
            if (whole) {
                bool last = one->head.size == 2;
                one->head.size = 0;
                if (last) complete(one, now);
            }
            break;
        case UNTIL_CLOSE:
            one->closes = true;
            take_payload(one, data, size, now);
            break;
        }
        data += used;
        size -= used;
    }
    return true;
}

// --- the three ways to ask ---

static void hear(Connection *one) {
    static char data[262144];
    if (one->connecting) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(one->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            lose(one);
            return;
        }
        one->connecting = false;
        watch(one, EPOLL_CTL_MOD, EPOLLIN);
        transmit(one);
        return;
    }
    ssize_t got = recv(one->fd, data, sizeof data, 0);
    if (got < 0 && errno == EAGAIN) return;
    int64_t now = now_ns();
    if (got > 0) {
        if (!parse(one, data, got, now)) {
            complain(&errors, "not HTTP", data, got);
            hang_up(one);
            one->busy = false;
        }
        return;
    }
    if (one->busy && one->reading == UNTIL_CLOSE) complete(one, now);
    lose(one);
}

// Hear until `due_ns`, or one round of what is there. Calls `then` for each connection that became free.
static void hear_until(int64_t due_ns, void (*then)(Connection *)) {
    struct epoll_event events[512];
    int found = wait_until(poll_fd, events, 512, due_ns);
    for (int i = 0; i < found; i++) {
        Connection *one = &connections[events[i].data.u32];
        if (one->fd < 0) continue;
        bool busy = one->busy;
        hear(one);
        if (busy && !one->busy) then(one);
    }
}

static void again(Connection *one) {
    int64_t now = now_ns();
    if (now < until_ns) ask(one, now, tokens_each);
}

static void rest(Connection *one) { idle[idle_count++] = one - connections; }

static void leave(Connection *one) { (void)one; }

static void keep_busy(int count) {
    // Begun one after the other over half of the warm-up, and each first stream is of another length, so that
    // streams are not in step.
    int64_t start_ns = now_ns(), ramp_ns = (from_ns - start_ns) / 2;
    for (int i = 0; i < count;) {
        if (now_ns() - start_ns >= ramp_ns * i / count) {
            ask(&connections[i], now_ns(), streaming ? 1 + (unsigned)((i * 7919LL) % tokens_each) : tokens_each);
            i++;
        }
        hear_until(i < count ? start_ns + ramp_ns * i / count : 0, again);
    }
    while (now_ns() < until_ns) hear_until(until_ns, again);
    open_count = count;
}

static void keep_pace(double rate) {
    int64_t start_ns = now_ns();
    for (unsigned long long asked = 0;;) {
        int64_t due_ns = start_ns + (int64_t)(asked * 1e9 / rate), now = now_ns();
        if (due_ns >= until_ns) break;
        if (due_ns <= now) {
            asked++;
            if (!idle_count && open_count == CONNECTIONS_MAX) {
                complain(&errors, "no connection left", "", 0);
                continue;
            }
            ask(&connections[idle_count ? idle[--idle_count] : open_count++], due_ns, tokens_each);
        }
        hear_until(due_ns > now ? due_ns : 0, rest);
    }
}

static void finish(void) {
    int64_t patience_ns = now_ns() + PATIENCE_NS;
    for (int i = 0; i < open_count; i++) {
        while (connections[i].busy && !streaming && now_ns() < patience_ns) hear_until(patience_ns, leave);
        hung_up += connections[i].busy;
        hang_up(&connections[i]);
    }
}

// --- the result ---

static int compare(const void *left, const void *right) {
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static void print_samples(const char *name, Samples *samples) {
    static const double SHARES[] = {0.5, 0.9, 0.99, 0.999, 1};
    static const char *NAMES[] = {"p50", "p90", "p99", "p999", "max"};
    qsort(samples->us, samples->count, sizeof(float), compare);
    printf("\"%s\":{\"count\":%zu", name, samples->count);
    for (int i = 0; i < 5 && samples->count; i++)
        printf(",\"%s\":%.1f", NAMES[i], samples->us[(size_t)(SHARES[i] * (samples->count - 1))]);
    printf("},");
}

int main(int count, char **words) {
    if (count < 7) exit(2);
    settle_in();
    port = atoi(words[2]);
    double seconds = atof(words[4]), warmup = atof(words[5]);
    streaming = !strcmp(words[1], "streams");
    if (streaming && count < 9) exit(2);
    pace_us = streaming ? atoi(words[7]) : 0;
    tokens_each = streaming ? atoi(words[8]) : 80;
    next_number = (unsigned)(now_ns() / 1000);
    poll_fd = epoll_create1(0);
    for (int i = 0; i < CONNECTIONS_MAX; i++) connections[i].fd = -1;
    make_request(words[3]);
    int64_t start_ns = now_ns();
    from_ns = start_ns + (int64_t)(warmup * 1e9);
    until_ns = from_ns + (int64_t)(seconds * 1e9);
    if (!strcmp(words[1], "open")) keep_pace(atof(words[6]));
    else keep_busy(atoi(words[6]));
    finish();
    double cpu = cpu_s(), wall = (now_ns() - start_ns) / 1e9;
    printf("{\"sent\":%llu,\"completed\":%llu,\"hung_up\":%llu,\"errors\":%llu,\"wrong\":%llu,", sent, completed,
           hung_up, errors, wrong);
    printf("\"complaint\":\"%s\",\"requests_per_s\":%.1f,\"tokens_per_s\":%.1f,\"tokens\":%llu,", complaint,
           measured / seconds, tokens_measured / seconds, tokens_total);
    print_samples("latency_us", &latencies);
    print_samples("first_token_us", &firsts);
    printf("\"cpu_s\":%.3f,\"wall_s\":%.3f}\n", cpu, wall);
    return 0;
}
