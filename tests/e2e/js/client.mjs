// The official Node.js client against a gateway: one command per behaviour, the result as one line of JSON.
import OpenAI, * as openai from "openai";

const [command, baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const model = "builtin";
const messages = [{ role: "user", content: "What is Groundswell?" }];
const say = (value) => console.log(JSON.stringify(value));
const caught = async (make) => {
  try {
    await make();
  } catch (error) {
    return error.constructor.name;
  }
  return "nothing";
};

const commands = {
  async chat() {
    const answer = await client.chat.completions.create({ model, messages, temperature: 0 });
    say({ content: answer.choices[0].message.content, usage: answer.usage });
  },
  async stream() {
    const stream = await client.chat.completions.create({
      model, messages, temperature: 0, stream: true, stream_options: { include_usage: true },
    });
    let content = "", finishes = [], usage = null, ids = new Set();
    for await (const chunk of stream) {
      ids.add(chunk.id);
      usage = chunk.usage ?? usage;
      for (const choice of chunk.choices) {
        content += choice.delta.content ?? "";
        if (choice.finish_reason) finishes.push(choice.finish_reason);
      }
    }
    say({ content, finishes, usage, ids: ids.size });
  },
  async embeddings() {
    const answer = await client.embeddings.create({ model: process.argv[5], input: ["a gateway", "a door"] });
    say({ count: answer.data.length, length: answer.data[0].embedding.length });
  },
  async models() {
    const names = [];
    for await (const one of client.models.list()) names.push(one.id);
    say({ names });
  },
  async tools() {
    const tool = { type: "function", function: { name: "now", parameters: { type: "object", properties: {} } } };
    const answer = await client.chat.completions.create({ model, messages, tools: [tool], tool_choice: "none" });
    say({ content: answer.choices[0].message.content });
  },
  async errors() {
    const bad = new OpenAI({ baseURL, apiKey: "gsw_wrong", maxRetries: 0 });
    say({
      badRequest: await caught(() => client.chat.completions.create({ model, messages, temperature: 9 })),
      unauthorized: await caught(() => bad.chat.completions.create({ model, messages })),
      notFound: await caught(() => client.chat.completions.create({ model: "no-such-model", messages })),
      unserved: await caught(() => client.images.generate({ prompt: "a gate" })),
    });
  },
  async abort() {
    const stream = await client.chat.completions.create({
      model: process.argv[5], messages, stream: true, max_tokens: 4000, ignore_eos: true,
    });
    let chunks = 0;
    for await (const chunk of stream) {
      chunks += chunk.choices.length;
      if (chunks === 5) stream.controller.abort();
    }
    say({ chunks });
    process.stdin.resume(); // Lives on until the test closes it: the abort must free the engine, not our end.
  },
  async each() {
    const embeddings = { model: process.argv[5], input: "a gateway" };
    const calls = {
      chat: () => client.chat.completions.create({ model, messages, temperature: 0 }),
      completions: () => client.completions.create({ model, prompt: "A gateway is", temperature: 0 }),
      embeddings: () => client.embeddings.create(embeddings),
      "models.list": () => client.models.list(),
      "models.retrieve": () => client.models.retrieve(model),
    };
    const text = ({ choices, data, id }) => JSON.stringify(choices?.map((one) => one.text ?? one.message) ?? data ?? id);
    const seen = {};
    for (const [name, call] of Object.entries(calls)) {
      const raw = await call().asResponse();
      const parsed = await call();
      const both = await call().withResponse();
      seen[name] = {
        status: raw.status, same: text(parsed) === text(both.data), request_id: both.request_id.startsWith("req_"),
      };
    }
    say(seen);
  },
};

await commands[command]();
