// An engine that costs next to nothing: answers of 600 bytes at once, streams at the pace that each request
// asks for. One thread, one epoll, as many ports as engines are wanted.
//
//     backend ENGINES      prints the ports, one on a line, and serves until its parent ends
//
// A request says in its prompt what it wants: "request 0000002a, a token every 000025000 us"; its max_tokens
// is how many. Paces are kept: a token that could not be sent in time is followed by the next one when that
// is due. The date in a token is taken when it is made, so that waiting in our own socket counts.
#include "wire.h"

#define STREAMS_MAX 65536
#define BODY_BYTES 600

typedef struct {
    int fd, at;  // `at`: place in the heap, 1-based; 0 when no stream runs here.
    bool writing, usage;
    unsigned number, position, tokens;
    int64_t due_ns, pace_ns;
    Buffer in, out;
} Connection;

static int poll_fd;
static Connection *heap[STREAMS_MAX + 1];  // Streams by their next token's time.
static int heap_size;
static unsigned long long answers, streams, tokens_sent, tokens_late, aborted;
static char body[BODY_BYTES + 1];

static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1700000000,"
    "\"owned_by\":\"vllm\",\"root\":\"bench\",\"parent\":null,\"max_model_len\":32768}]}";
static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nserver: backend\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    "transfer-encoding: chunked\r\n\r\n";
#define CHUNK_HEAD                                                                                     \
    "data: {\"id\":\"chatcmpl-%08x\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"      \
    "\"model\":\"bench\",\"choices\":["

// --- the heap ---

static void put(int at, Connection *one) {
    heap[at] = one;
    one->at = at;
}

static void sift(int at, Connection *one) {
    while (at > 1 && heap[at / 2]->due_ns > one->due_ns) {
        put(at, heap[at / 2]);
        at /= 2;
    }
    for (int below; (below = 2 * at) <= heap_size; at = below) {
        if (below < heap_size && heap[below + 1]->due_ns < heap[below]->due_ns) below++;
        if (heap[below]->due_ns >= one->due_ns) break;
        put(at, heap[below]);
    }
    put(at, one);
}

static void take_out(Connection *one) {
    Connection *last = heap[heap_size--];
    if (last != one) sift(one->at, last);
    one->at = 0;
}

// --- writing ---

static void watch(Connection *one, bool writing) {
    struct epoll_event event = {EPOLLIN | (writing ? EPOLLOUT : 0), {.ptr = one}};
    if (one->writing != writing) epoll_ctl(poll_fd, EPOLL_CTL_MOD, one->fd, &event);
    one->writing = writing;
}

static void flush(Connection *one) {
    ssize_t sent = one->out.size ? send(one->fd, one->out.data, one->out.size, 0) : 0;
    if (sent > 0) drop(&one->out, sent);
    watch(one, one->out.size > 0);  // A broken connection shows when it is read.
}

static void chunk(Buffer *out, const char *format, ...) {
    char text[1024];
    va_list values;
    va_start(values, format);
    int size = vsnprintf(text, sizeof text, format, values);
    va_end(values);
    out->size += sprintf(reserve(out, size + 16), "%x\r\n%s\r\n", size, text);
}

static void respond(Connection *one, int status, const char *text, size_t size) {
    Buffer *out = &one->out;
    out->size += sprintf(reserve(out, size + 256),
                         "HTTP/1.1 %d %s\r\nserver: backend\r\ncontent-type: application/json\r\n"
                         "content-length: %zu\r\n\r\n",
                         status, status == 200 ? "OK" : "Not Found", size);
    append(out, text, size);
}

// --- answering ---

static void make_body(void) {
    static const char FRAME[] =
        "{\"id\":\"chatcmpl-00000000\",\"object\":\"chat.completion\",\"created\":1700000000,"
        "\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
        "\"answer 00000000: %s\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":60,\"completion_tokens\":80,\"total_tokens\":140}}";
    char filling[BODY_BYTES];
    size_t size = BODY_BYTES - (sizeof FRAME - 1 - 2);
    for (size_t i = 0; i < size; i++) filling[i] = "the quick brown fox jumps over it "[i % 34];
    filling[size] = 0;
    if (sprintf(body, FRAME, filling) != BODY_BYTES) exit(1);
}

static void answer(Connection *one, unsigned number) {
    char digits[9];
    sprintf(digits, "%08x", number);
    memcpy(strstr(body, "chatcmpl-") + 9, digits, 8);
    memcpy(strstr(body, "answer ") + 7, digits, 8);
    respond(one, 200, body, BODY_BYTES);
    answers++;
}

static void begin_stream(Connection *one, unsigned number, unsigned tokens, int64_t pace_ns) {
    one->number = number;
    one->position = 0;
    one->tokens = tokens;
    one->pace_ns = pace_ns;
    one->due_ns = now_ns() + pace_ns;
    append(&one->out, STREAM_HEAD, sizeof STREAM_HEAD - 1);
    chunk(&one->out, CHUNK_HEAD "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
          "\"finish_reason\":null}]}\n\n", number);
    if (heap_size == STREAMS_MAX) exit(1);
    sift(++heap_size, one);
    streams++;
}

static void token(Connection *one, int64_t now) {
    Buffer *out = &one->out;
    chunk(out, CHUNK_HEAD "{\"index\":0,\"delta\":{\"content\":\"" TOKEN_FORMAT "\"},\"logprobs\":null,"
          "\"finish_reason\":null}]}\n\n", one->number, one->number, one->position, (unsigned long long)now);
    tokens_sent++;
    tokens_late += now - one->due_ns > 1000000;
    if (++one->position < one->tokens) {
        one->due_ns += one->pace_ns;
        sift(one->at, one);
    } else {
        take_out(one);
        chunk(out, CHUNK_HEAD "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n",
              one->number);
        if (one->usage)
            chunk(out, CHUNK_HEAD "],\"usage\":{\"prompt_tokens\":60,\"completion_tokens\":%u,"
                  "\"total_tokens\":%u}}\n\n", one->number, one->tokens, one->tokens + 60);
        chunk(out, "data: [DONE]\n\n");
        append(out, "0\r\n\r\n", 5);
    }
    flush(one);
}

static unsigned long long number_after(const char *text, const char *label, int base) {
    const char *at = strstr(text, label);
    return at ? strtoull(at + strlen(label), NULL, base) : 0;
}

static void handle(Connection *one, const char *head, const char *text) {
    if (!strncmp(head, "POST /v1/chat/completions ", 26)) {
        unsigned number = number_after(text, "request ", 16);
        one->usage = strstr(text, "\"include_usage\":true") || strstr(text, "\"include_usage\": true");
        if (strstr(text, "\"stream\":true") || strstr(text, "\"stream\": true"))
            begin_stream(one, number, number_after(text, "\"max_tokens\":", 10),
                         number_after(text, "a token every ", 10) * 1000);
        else
            answer(one, number);
    } else if (!strncmp(head, "GET /v1/models ", 15)) {
        respond(one, 200, MODELS, sizeof MODELS - 1);
    } else if (!strncmp(head, "GET /health ", 12)) {
        respond(one, 200, "{}", 2);
    } else if (!strncmp(head, "GET /bench/stats ", 17)) {
        char stats[300];
        int size = sprintf(stats, "{\"answers\":%llu,\"streams\":%llu,\"tokens\":%llu,\"late\":%llu,"
                           "\"aborted\":%llu,\"cpu_s\":%.3f}", answers, streams, tokens_sent, tokens_late, aborted,
                           cpu_s());
        respond(one, 200, stats, size);
    } else {
        respond(one, 404, "{\"error\":{\"message\":\"no such path\"}}", 36);
    }
}

// Whole requests in the input, one after the other; none while a stream runs.
static void advance(Connection *one) {
    while (!one->at && one->in.size) {
        *reserve(&one->in, 1) = 0;
        char *end = strstr(one->in.data, "\r\n\r\n");
        if (!end) return;
        *end = 0;
        const char *length = header(one->in.data, "content-length");
        size_t head = end + 4 - one->in.data, size = length ? strtoul(length, NULL, 10) : 0;
        if (one->in.size < head + size) {
            *end = '\r';
            return;
        }
        char next = one->in.data[head + size];
        one->in.data[head + size] = 0;
        handle(one, one->in.data, one->in.data + head);
        one->in.data[head + size] = next;
        drop(&one->in, head + size);
    }
}

static void hang_up(Connection *one) {
    if (one->at) {
        take_out(one);
        aborted++;
    }
    close(one->fd);
    free(one->in.data);
    free(one->out.data);
    free(one);
}

static void hear(Connection *one) {
    ssize_t got = recv(one->fd, reserve(&one->in, 16384), 16000, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        hang_up(one);
        return;
    }
    one->in.size += got;
    advance(one);
    flush(one);
}

static void welcome(int listener) {
    for (int fd; (fd = accept(listener, NULL, NULL)) >= 0;) {
        unblock(fd);
        Connection *one = calloc(1, sizeof *one);
        if (!one) die("calloc");
        one->fd = fd;
        struct epoll_event event = {EPOLLIN, {.ptr = one}};
        epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

static int listen_on_any_port(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(fd, (void *)&address, size) || listen(fd, 8192)) die("listen");
    getsockname(fd, (void *)&address, &size);
    unblock(fd);
    printf("%d\n", ntohs(address.sin_port));
    return fd;
}

int main(int count, char **words) {
    static int listeners[16];
    int engines = count > 1 ? atoi(words[1]) : 1;
    settle_in();
    make_body();
    poll_fd = epoll_create1(0);
    for (int i = 0; i < engines && i < 16; i++) {
        listeners[i] = listen_on_any_port();
        struct epoll_event event = {EPOLLIN, {.ptr = &listeners[i]}};
        epoll_ctl(poll_fd, EPOLL_CTL_ADD, listeners[i], &event);
    }
    fflush(stdout);
    for (;;) {
        struct epoll_event events[256];
        int64_t due_ns = heap_size ? heap[1]->due_ns : now_ns() + 1000000000;
        int found = wait_until(poll_fd, events, 256, due_ns);
        for (int i = 0; i < found; i++) {
            void *who = events[i].data.ptr;
            if (who >= (void *)listeners && who < (void *)(listeners + 16))
                welcome(*(int *)who);
            else if (events[i].events & ~EPOLLOUT)
                hear(who);
            else
                flush(who);
        }
        // At most a few at a time, so that requests are heard in between.
        for (int i = 0; i < 64 && heap_size; i++) {
            int64_t now = now_ns();
            if (heap[1]->due_ns > now) break;
            token(heap[1], now);
        }
    }
}
