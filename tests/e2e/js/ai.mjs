// The AI SDK with both of its OpenAI providers: a JSON line for each behaviour, as tests/e2e/clients does.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, jsonSchema, streamText, tool } from "ai";
import { readFileSync } from "node:fs";

const asked = JSON.parse(process.argv[3]);
const options = { baseURL: `${asked.url}/v1`, apiKey: asked.key };
const compatible = (more) => createOpenAICompatible({ name: "groundswell", includeUsage: true, ...options, ...more });
const official = (more) => createOpenAI({ ...options, ...more });
// The official provider asks for /v1/responses unless it is told to chat.
const providers = {
  compatible: { make: (more) => (name) => compatible(more).chatModel(name), embed: (name) => compatible().embeddingModel(name), bias: { groundswell: { logit_bias: asked.bias } }, package: "@ai-sdk/openai-compatible" },
  official: { make: (more) => official(more).chat, embed: (name) => official().embedding(name), bias: { openai: { logitBias: asked.bias } }, package: "@ai-sdk/openai" },
};
const provider = providers[process.argv[2]];
const model = provider.make();
const prompt = "What is Groundswell?";
const say = (behaviour, seen) => console.log(JSON.stringify({ behaviour, ...seen }));
const version = (name) => JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version;
const raised = async (call) => {
  try {
    await call();
  } catch (error) {
    return `${error.name} ${error.statusCode}`;
  }
  return "nothing";
};
const chat = (more) => generateText({ model: model(asked.chat), prompt, temperature: 0, maxRetries: 0, ...more });

say("versions", { packages: Object.fromEntries(["ai", provider.package].map((name) => [name, version(name)])) });

const answer = await chat();
say("chat", { content: answer.text, tokens: answer.usage.outputTokens });

const stream = streamText({ model: model(asked.chat), prompt, temperature: 0, maxRetries: 0 });
let content = "", pieces = 0;
for await (const text of stream.textStream) {
  content += text;
  pieces += 1;
}
say("stream", { content, pieces, tokens: (await stream.usage).outputTokens });

const { name, description, parameters } = asked.weather.function;
const weather = {
  model: model(asked.tools), prompt: "What is the weather in Rome?", temperature: 0, maxRetries: 0, maxOutputTokens: 400,
  tools: { [name]: tool({ description, inputSchema: jsonSchema(parameters) }) }, toolChoice: "required",
  providerOptions: provider.bias,
};
const [call] = (await generateText(weather)).toolCalls;
say("tools", { name: call.toolName, arguments: call.input });
const [streamed] = await streamText(weather).toolCalls;
say("tool_stream", { name: streamed.toolName, arguments: streamed.input });

const { embeddings } = await embedMany({ model: provider.embed(asked.embedder), values: ["a gateway", "a door"], maxRetries: 0 });
say("embeddings", { lengths: embeddings.map((one) => one.length) });

say("errors", {
  bad_request: await raised(() => chat({ temperature: 9 })),
  unauthorised: await raised(() => chat({ model: provider.make({ apiKey: "gsw_wrong" })(asked.chat) })),
  not_found: await raised(() => chat({ model: model("no-such-model") })),
});

// No client of this kind knows ignore_eos; the engine's answers are long enough.
const abort = new AbortController();
const endless = streamText({ model: model(asked.endless), prompt, maxOutputTokens: 4000, abortSignal: abort.signal, maxRetries: 0 });
let count = 0;
for await (const _text of endless.textStream) {
  count += 1;
  if (count === 5) abort.abort();
}
say("abort", { pieces: count });
process.stdin.resume(); // Lives on until the test closes it: the abort must free the engine, not our end.
