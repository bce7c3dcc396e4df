"""Text models of the transformers library, and those from speech to text."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from benchmarks.families import Sample
from benchmarks.families.transformers_entry import (
    MASKED,
    SPEECH_TO_TEXT,
    TEXT,
    TEXT_TO_TEXT,
    TOKENS,
    UNROLLED,
    VOCABULARY,
    Builder,
    Draw,
    build_model,
    entry,
    sample,
)

_CAUSAL = TEXT | {"use_cache": False, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = _CAUSAL | {"num_key_value_heads": 2}
_GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 64,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "use_cache": False,
}
_ESM = TEXT | {"emb_layer_norm_before": True}

ENCODERS = {
    "bert": entry("BertForSequenceClassification", MASKED, num_labels=5, **TEXT),
    "roberta": entry("RobertaForMaskedLM", MASKED, **TEXT),
    "distilbert": entry(
        "DistilBertForQuestionAnswering",
        MASKED,
        outputs=("start_logits", "end_logits"),
        vocab_size=VOCABULARY,
        dim=64,
        n_layers=2,
        n_heads=4,
        hidden_dim=128,
        max_position_embeddings=64,
        attn_implementation="sdpa",
    ),
    "albert": entry("AlbertForMaskedLM", TOKENS, embedding_size=32, **(TEXT | {"num_hidden_layers": 3})),
    "electra": entry("ElectraForPreTraining", TOKENS, embedding_size=32, **TEXT),
    "deberta_v2": entry(
        "DebertaV2ForTokenClassification",
        MASKED,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        **TEXT,
    ),
    "mpnet": entry("MPNetForMaskedLM", TOKENS, **(TEXT | {"pad_token_id": 1})),
    "xlm_roberta": entry("XLMRobertaModel", MASKED, attn_implementation="sdpa", **TEXT),
    "mobilebert": entry(
        "MobileBertForMaskedLM",
        TOKENS,
        embedding_size=32,
        intra_bottleneck_size=32,
        num_feedforward_networks=2,
        **TEXT,
    ),
    "squeezebert": entry("SqueezeBertModel", MASKED, embedding_size=64, **TEXT),
    "funnel": entry(
        "FunnelModel",
        UNROLLED,
        vocab_size=VOCABULARY,
        block_sizes=[1, 1],
        num_decoder_layers=1,
        d_model=64,
        n_head=4,
        d_head=16,
        d_inner=128,
    ),
    "modernbert": entry(
        "ModernBertForMaskedLM",
        MASKED,
        local_attention=8,
        global_attn_every_n_layers=2,
        cls_token_id=1,
        sep_token_id=2,
        **_CAUSAL,
    ),
    "convbert": entry("ConvBertModel", TOKENS, embedding_size=64, conv_kernel_size=3, **TEXT),
    "fnet": entry("FNetModel", TOKENS, **TEXT),
    "esm": entry("EsmForMaskedLM", MASKED, position_embedding_type="rotary", mask_token_id=3, **_ESM),
    "roformer": entry("RoFormerForMaskedLM", TOKENS, embedding_size=64, **TEXT),
    "layoutlm": entry(
        "LayoutLMModel",
        TOKENS | {"bbox": Draw((12, 4), 60, {1: "sequence"}, "boxes")},
        max_2d_position_embeddings=64,
        **TEXT,
    ),
    "xlnet": entry(
        "XLNetModel",
        TOKENS,
        vocab_size=VOCABULARY,
        d_model=64,
        n_layer=2,
        n_head=4,
        d_inner=128,
        use_mems_eval=False,
    ),
}

DECODERS = {
    "gpt2": entry("GPT2LMHeadModel", MASKED, **_GPT),
    "gpt_neo": entry(
        "GPTNeoForCausalLM",
        MASKED,
        num_layers=3,
        num_heads=4,
        attention_types=[[["global", "local", "global"], 1]],
        window_size=4,
        **_CAUSAL,
    ),
    "gpt_neox": entry("GPTNeoXForCausalLM", MASKED, **_CAUSAL),
    "gptj": entry("GPTJForCausalLM", MASKED, rotary_dim=8, **_GPT),
    "opt": entry("OPTForCausalLM", MASKED, ffn_dim=128, word_embed_proj_dim=32, **_CAUSAL),
    "bloom": entry("BloomForCausalLM", MASKED, **(_CAUSAL | {"n_head": 4, "n_layer": 2})),
    "mpt": entry(
        "MptForCausalLM",
        MASKED,
        vocab_size=VOCABULARY,
        d_model=64,
        n_heads=4,
        n_layers=2,
        expansion_ratio=2,
        max_seq_len=64,
        use_cache=False,
    ),
    "falcon_multiquery": entry("FalconForCausalLM", MASKED, multi_query=True, **_CAUSAL),
    "llama_gqa": entry("LlamaForCausalLM", MASKED, **_GROUPED),
    "mistral": entry("MistralForCausalLM", MASKED, sliding_window=8, attn_implementation="sdpa", **_GROUPED),
    "qwen2": entry("Qwen2ForCausalLM", MASKED, tie_word_embeddings=True, **_GROUPED),
    "qwen3": entry("Qwen3ForCausalLM", MASKED, head_dim=32, **_GROUPED),
    "gemma_multiquery": entry(
        "GemmaForCausalLM", MASKED, head_dim=16, **(_GROUPED | {"num_key_value_heads": 1})
    ),
    "gemma2": entry(
        "Gemma2ForCausalLM", MASKED, head_dim=16, sliding_window=8, query_pre_attn_scalar=16, **_GROUPED
    ),
    "gemma3": entry(
        "Gemma3ForCausalLM", MASKED, head_dim=16, sliding_window=8, query_pre_attn_scalar=16, **_GROUPED
    ),
    "phi": entry("PhiForCausalLM", MASKED, qk_layernorm=True, **_CAUSAL),
    "phi3": entry("Phi3ForCausalLM", MASKED, **_GROUPED),
    "stablelm": entry("StableLmForCausalLM", MASKED, use_qkv_bias=True, **_GROUPED),
    "olmo2": entry("Olmo2ForCausalLM", MASKED, **_GROUPED),
    "codegen": entry("CodeGenForCausalLM", MASKED, rotary_dim=8, **_GPT),
    "cohere": entry("CohereForCausalLM", MASKED, use_qk_norm=True, **_GROUPED),
    "granite": entry(
        "GraniteForCausalLM",
        MASKED,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        logits_scaling=2.0,
        **_GROUPED,
    ),
    "smollm3": entry("SmolLM3ForCausalLM", MASKED, attn_implementation="sdpa", **_GROUPED),
    "gpt_bigcode_multiquery": entry("GPTBigCodeForCausalLM", MASKED, multi_query=True, **_GPT),
    "starcoder2": entry("Starcoder2ForCausalLM", MASKED, **_GROUPED),
}

_EXPERTS = _GROUPED | {"num_experts_per_tok": 2, "experts_implementation": "batched_mm"}
_STATE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "state_size": 8,
    "use_cache": False,
}

_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 40,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 48,
}

EXPERTS_AND_STATES = {
    "mixtral": entry("MixtralForCausalLM", MASKED, num_local_experts=4, **_EXPERTS),
    "qwen2_moe": entry(
        "Qwen2MoeForCausalLM",
        MASKED,
        num_experts=4,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=64,
        **_EXPERTS,
    ),
    "olmoe": entry("OlmoeForCausalLM", MASKED, num_experts=4, **_EXPERTS),
    "deepseek_v3": entry("DeepseekV3ForCausalLM", MASKED, **(_EXPERTS | _LATENT)),
    "lfm2": entry("Lfm2ForCausalLM", MASKED, layer_types=["conv", "full_attention", "conv"], **_GROUPED),
    "granitemoe": entry("GraniteMoeForCausalLM", MASKED, num_local_experts=4, **_EXPERTS),
    "switch_transformers": entry(
        "SwitchTransformersForConditionalGeneration",
        TEXT_TO_TEXT,
        num_experts=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_decoder_layers=2,
        expert_capacity=64,
        **_T5,
    ),
    "mamba": entry("MambaForCausalLM", UNROLLED, **_STATE),
    "mamba2": entry(
        "Mamba2ForCausalLM", UNROLLED, num_heads=8, head_dim=16, n_groups=2, chunk_size=4, **_STATE
    ),
    "falcon_mamba": entry("FalconMambaForCausalLM", UNROLLED, **_STATE),
    "rwkv": entry("RwkvForCausalLM", UNROLLED, context_length=64, **_STATE),
    "recurrent_gemma": entry(
        "RecurrentGemmaForCausalLM",
        UNROLLED | {"attention_mask": Draw((12,), kind="mask")},
        lru_width=64,
        attention_window_size=8,
        head_dim=16,
        block_types=["recurrent", "attention"],
        **_GROUPED,
    ),
}

ENCODER_DECODERS = {
    "t5": entry("T5ForConditionalGeneration", TEXT_TO_TEXT, **_T5),
    "flan_t5_gated": entry(
        "T5ForConditionalGeneration",
        TEXT_TO_TEXT,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        **_T5,
    ),
    "bart": entry("BartForConditionalGeneration", TEXT_TO_TEXT, **_SEQ2SEQ),
    "marian": entry("MarianMTModel", TEXT_TO_TEXT, **_SEQ2SEQ),
    "pegasus": entry("PegasusForConditionalGeneration", TEXT_TO_TEXT, attn_implementation="sdpa", **_SEQ2SEQ),
    "mbart": entry("MBartForConditionalGeneration", TEXT_TO_TEXT, **_SEQ2SEQ),
    "m2m_100": entry("M2M100ForConditionalGeneration", TEXT_TO_TEXT, **_SEQ2SEQ),
    "blenderbot_small": entry("BlenderbotSmallForConditionalGeneration", TEXT_TO_TEXT, **_SEQ2SEQ),
    "whisper": entry(
        "WhisperForConditionalGeneration",
        SPEECH_TO_TEXT | {"decoder_attention_mask": Draw((7,), axes={1: "target"}, kind="mask")},
        num_mel_bins=16,
        max_source_positions=24,
        max_target_positions=32,
        **_SEQ2SEQ,
    ),
    "speech_to_text": entry(
        "Speech2TextForConditionalGeneration",
        SPEECH_TO_TEXT | {"input_features": Draw((48, 16))},
        input_feat_per_channel=16,
        conv_channels=32,
        max_source_positions=64,
        max_target_positions=32,
        **_SEQ2SEQ,
    ),
}


class LlamaCached(nn.Module):
    """A two-layer Llama that takes past keys and values and gives the present ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        key_0: torch.Tensor,
        value_0: torch.Tensor,
        key_1: torch.Tensor,
        value_1: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Give logits, then the keys and values of both layers."""
        cache = transformers.DynamicCache()
        cache.update(key_0, value_0, 0)
        cache.update(key_1, value_1, 1)
        logits = self.model(input_ids=input_ids, past_key_values=cache, use_cache=True).logits
        return (logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def _llama_cache() -> Sample:
    past = Draw((2, 5, 16), axes={2: "past"})
    names = ("key_0", "value_0", "key_1", "value_1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = LlamaCached(
            build_model("LlamaForCausalLM", _GROUPED | {"use_cache": True, "num_hidden_layers": 2})
        )
        return sample(module, TOKENS | dict.fromkeys(names, past))


TEXT_MODELS: dict[str, Builder] = {
    **ENCODERS,
    **DECODERS,
    "llama_cache": _llama_cache,
    **EXPERTS_AND_STATES,
    **ENCODER_DECODERS,
}
