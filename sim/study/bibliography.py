"""What can be cited, as BibTeX: facts as publisher or arXiv give them, unknown ones left out."""

from __future__ import annotations

import re

BIBTEX = r"""
@misc{zheng2025bucketserve,
  title = {{BucketServe}: Bucket-Based Dynamic Batching for Smart and Efficient {LLM} Inference
    Serving},
  author = {Zheng, Wanyi and Xu, Minxian and Song, Shengye and Ye, Kejiang},
  year = {2025},
  eprint = {2507.17120},
  archivePrefix = {arXiv},
}

@inproceedings{he2024uellm,
  title = {{UELLM}: A Unified and Efficient Approach for Large Language Model Inference Serving},
  author = {He, Yiyuan and Xu, Minxian and Wu, Jingfeng and Zheng, Wanyi and Ye, Kejiang and
    Xu, Chengzhong},
  booktitle = {Service-Oriented Computing (ICSOC 2024)},
  series = {LNCS},
  volume = {15404},
  pages = {218--235},
  year = {2025},
  publisher = {Springer},
  eprint = {2409.14961},
  archivePrefix = {arXiv},
}

@inproceedings{zhong2024distserve,
  title = {{DistServe}: Disaggregating Prefill and Decoding for Goodput-optimized Large Language
    Model Serving},
  author = {Zhong, Yinmin and Liu, Shengyu and Chen, Junda and Hu, Jianbo and Zhu, Yibo and
    Liu, Xuanzhe and Jin, Xin and Zhang, Hao},
  booktitle = {18th USENIX Symposium on Operating Systems Design and Implementation (OSDI 24)},
  pages = {193--210},
  year = {2024},
  url = {https://www.usenix.org/conference/osdi24/presentation/zhong-yinmin},
  eprint = {2401.09670},
  archivePrefix = {arXiv},
}

@inproceedings{patel2024splitwise,
  title = {Splitwise: Efficient Generative {LLM} Inference Using Phase Splitting},
  author = {Patel, Pratyush and Choukse, Esha and Zhang, Chaojie and Shah, Aashaka and
    Goiri, {\'I}{\~n}igo and Maleki, Saeed and Bianchini, Ricardo},
  booktitle = {51st ACM/IEEE Annual International Symposium on Computer Architecture (ISCA)},
  pages = {118--132},
  year = {2024},
  doi = {10.1109/ISCA59077.2024.00019},
  eprint = {2311.18677},
  archivePrefix = {arXiv},
}

@inproceedings{kwon2023vllm,
  title = {Efficient Memory Management for Large Language Model Serving with {PagedAttention}},
  author = {Kwon, Woosuk and Li, Zhuohan and Zhuang, Siyuan and Sheng, Ying and Zheng, Lianmin and
    Yu, Cody Hao and Gonzalez, Joseph E. and Zhang, Hao and Stoica, Ion},
  booktitle = {29th Symposium on Operating Systems Principles (SOSP)},
  pages = {611--626},
  year = {2023},
  doi = {10.1145/3600006.3613165},
  eprint = {2309.06180},
  archivePrefix = {arXiv},
}

@inproceedings{yu2022orca,
  title = {Orca: A Distributed Serving System for {Transformer-Based} Generative Models},
  author = {Yu, Gyeong-In and Jeong, Joo Seong and Kim, Geon-Woo and Kim, Soojeong and
    Chun, Byung-Gon},
  booktitle = {16th USENIX Symposium on Operating Systems Design and Implementation (OSDI 22)},
  pages = {521--538},
  year = {2022},
  url = {https://www.usenix.org/conference/osdi22/presentation/yu},
}

@inproceedings{agrawal2024sarathi,
  title = {Taming {Throughput-Latency} Tradeoff in {LLM} Inference with {Sarathi-Serve}},
  author = {Agrawal, Amey and Kedia, Nitin and Panwar, Ashish and Mohan, Jayashree and
    Kwatra, Nipun and Gulavani, Bhargav and Tumanov, Alexey and Ramjee, Ramachandran},
  booktitle = {18th USENIX Symposium on Operating Systems Design and Implementation (OSDI 24)},
  pages = {117--134},
  year = {2024},
  url = {https://www.usenix.org/conference/osdi24/presentation/agrawal},
  eprint = {2403.02310},
  archivePrefix = {arXiv},
}

@inproceedings{xu2023smdp,
  title = {{SMDP}-Based Dynamic Batching for Efficient Inference on {GPU}-Based Platforms},
  author = {Xu, Yaodan and Sun, Jingzhou and Zhou, Sheng and Niu, Zhisheng},
  booktitle = {IEEE International Conference on Communications (ICC)},
  year = {2023},
  eprint = {2301.12865},
  archivePrefix = {arXiv},
}

@misc{xu2025smdp,
  title = {{SMDP}-Based Dynamic Batching for Improving Responsiveness and Energy Efficiency of Batch
    Services},
  author = {Xu, Yaodan and Zhou, Sheng and Niu, Zhisheng},
  year = {2025},
  eprint = {2501.02181},
  archivePrefix = {arXiv},
}

@misc{ikram2025ascendra,
  title = {Ascendra: Dynamic Request Prioritization for Efficient {LLM} Serving},
  author = {Ikram, Azam and Li, Xiang and Elnikety, Sameh and Bagchi, Saurabh},
  year = {2025},
  eprint = {2504.20828},
  archivePrefix = {arXiv},
}

@misc{gao2025cosine,
  title = {Collaborative Speculative Inference for Efficient {LLM} Inference Serving},
  author = {Gao, Luyao and Liu, Jianchun and Xu, Hongli and Zhang, Xichong and Liao, Yunming and
    Huang, Liusheng},
  year = {2025},
  eprint = {2503.10325},
  archivePrefix = {arXiv},
}

@inproceedings{miao2024specinfer,
  title = {{SpecInfer}: Accelerating Large Language Model Serving with Tree-based Speculative
    Inference and Verification},
  author = {Miao, Xupeng and Oliaro, Gabriele and Zhang, Zhihao and Cheng, Xinhao and
    Wang, Zeyu and Zhang, Zhengxin and Wong, Rae Ying Yee and Zhu, Alan and Yang, Lijie and
    Shi, Xiaoxiang and Shi, Chunan and Chen, Zhuoming and Arfeen, Daiyaan and
    Abhyankar, Reyna and Jia, Zhihao},
  booktitle = {29th ACM International Conference on Architectural Support for Programming Languages
    and Operating Systems, Volume 3 (ASPLOS)},
  pages = {932--949},
  year = {2024},
  doi = {10.1145/3620666.3651335},
  eprint = {2305.09781},
  archivePrefix = {arXiv},
}

@inproceedings{li2024eagle,
  title = {{EAGLE}: Speculative Sampling Requires Rethinking Feature Uncertainty},
  author = {Li, Yuhui and Wei, Fangyun and Zhang, Chao and Zhang, Hongyang},
  booktitle = {41st International Conference on Machine Learning (ICML)},
  series = {PMLR},
  volume = {235},
  pages = {28935--28948},
  year = {2024},
  url = {https://proceedings.mlr.press/v235/li24bt.html},
  eprint = {2401.15077},
  archivePrefix = {arXiv},
}

@inproceedings{cai2024medusa,
  title = {{Medusa}: Simple {LLM} Inference Acceleration Framework with Multiple Decoding Heads},
  author = {Cai, Tianle and Li, Yuhong and Geng, Zhengyang and Peng, Hongwu and Lee, Jason D. and
    Chen, Deming and Dao, Tri},
  booktitle = {41st International Conference on Machine Learning (ICML)},
  year = {2024},
  url = {https://openreview.net/forum?id=PEpbUobfJv},
  eprint = {2401.10774},
  archivePrefix = {arXiv},
}

@misc{liu2024smartspec,
  title = {Optimizing Speculative Decoding for Serving Large Language Models Using Goodput},
  author = {Liu, Xiaoxuan and Daniel, Cade and Hu, Langxiang and Kwon, Woosuk and Li, Zhuohan and
    Mo, Xiangxi and Cheung, Alvin and Deng, Zhijie and Stoica, Ion and Zhang, Hao},
  year = {2024},
  eprint = {2406.14066},
  archivePrefix = {arXiv},
  note = {SmartSpec, versions 1 and 2; version 3 (2025) is {TurboSpec}: Closed-loop Speculation
    Control System for Optimizing {LLM} Serving Goodput},
}

@inproceedings{liu2026illusion,
  title = {Speculative Decoding: Performance or Illusion?},
  author = {Liu, Xiaoxuan and Yu, Jiaxiang and Park, Jongseok and Stoica, Ion and Cheung, Alvin},
  booktitle = {Conference on Machine Learning and Systems (MLSys)},
  year = {2026},
  eprint = {2601.11580},
  archivePrefix = {arXiv},
}

@inproceedings{ye2025flashinfer,
  title = {{FlashInfer}: Efficient and Customizable Attention Engine for {LLM} Inference Serving},
  author = {Ye, Zihao and Chen, Lequn and Lai, Ruihang and Lin, Wuwei and Zhang, Yineng and
    Wang, Stephanie and Chen, Tianqi and Kasikci, Baris and Grover, Vinod and
    Krishnamurthy, Arvind and Ceze, Luis},
  booktitle = {Proceedings of Machine Learning and Systems 7 (MLSys)},
  year = {2025},
  eprint = {2501.01005},
  archivePrefix = {arXiv},
}

@article{liu1973scheduling,
  title = {Scheduling Algorithms for Multiprogramming in a Hard-Real-Time Environment},
  author = {Liu, C. L. and Layland, James W.},
  journal = {Journal of the ACM},
  volume = {20},
  number = {1},
  pages = {46--61},
  year = {1973},
  doi = {10.1145/321738.321743},
}

@inproceedings{jagadish1998histograms,
  title = {Optimal Histograms with Quality Guarantees},
  author = {Jagadish, H. V. and Koudas, Nick and Muthukrishnan, S. and Poosala, Viswanath and
    Sevcik, Kenneth C. and Suel, Torsten},
  booktitle = {24th International Conference on Very Large Data Bases (VLDB)},
  pages = {275--286},
  year = {1998},
}

@inproceedings{agrawal2024vidur,
  title = {Vidur: A Large-Scale Simulation Framework for {LLM} Inference},
  author = {Agrawal, Amey and Kedia, Nitin and Mohan, Jayashree and Panwar, Ashish and
    Kwatra, Nipun and Gulavani, Bhargav and Ramjee, Ramachandran and Tumanov, Alexey},
  booktitle = {Proceedings of Machine Learning and Systems 6 (MLSys)},
  year = {2024},
  eprint = {2405.05465},
  archivePrefix = {arXiv},
}

@inproceedings{cho2024llmservingsim,
  title = {{LLMServingSim}: A {HW/SW} Co-Simulation Infrastructure for {LLM} Inference Serving at
    Scale},
  author = {Cho, Jaehong and Kim, Minsu and Choi, Hyunmin and Heo, Guseul and Park, Jongse},
  booktitle = {IEEE International Symposium on Workload Characterization (IISWC)},
  year = {2024},
  doi = {10.1109/IISWC63097.2024.00012},
  eprint = {2408.05499},
  archivePrefix = {arXiv},
}

@misc{taori2023alpaca,
  title = {Stanford {Alpaca}: An Instruction-following {LLaMA} model},
  author = {Taori, Rohan and Gulrajani, Ishaan and Zhang, Tianyi and Dubois, Yann and
    Li, Xuechen and Guestrin, Carlos and Liang, Percy and Hashimoto, Tatsunori B.},
  year = {2023},
  howpublished = {\url{https://github.com/tatsu-lab/stanford_alpaca}},
}

@misc{sharegpt,
  title = {{ShareGPT} Vicuna unfiltered},
  note = {Hugging Face data set},
  howpublished =
    {\url{https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered}},
}

@inproceedings{bai2024longbench,
  title = {{LongBench}: A Bilingual, Multitask Benchmark for Long Context Understanding},
  author = {Bai, Yushi and Lv, Xin and Zhang, Jiajie and Lyu, Hongchang and Tang, Jiankai and
    Huang, Zhidian and Du, Zhengxiao and Liu, Xiao and Zeng, Aohan and Hou, Lei and Dong, Yuxiao and
    Tang, Jie and Li, Juanzi},
  booktitle = {62nd Annual Meeting of the Association for Computational Linguistics (ACL)},
  pages = {3119--3137},
  year = {2024},
  doi = {10.18653/v1/2024.acl-long.172},
  eprint = {2308.14508},
  archivePrefix = {arXiv},
}

@inproceedings{cohan2018discourse,
  title = {A Discourse-Aware Attention Model for Abstractive Summarization of Long Documents},
  author = {Cohan, Arman and Dernoncourt, Franck and Kim, Doo Soon and Bui, Trung and
    Kim, Seokhwan and Chang, Walter and Goharian, Nazli},
  booktitle = {2018 Conference of the North American Chapter of the Association for Computational
    Linguistics: Human Language Technologies, Volume 2 (NAACL-HLT)},
  pages = {615--621},
  year = {2018},
  doi = {10.18653/v1/N18-2097},
}

@inproceedings{stojkovic2025dynamollm,
  title = {{DynamoLLM}: Designing {LLM} Inference Clusters for Performance and Energy Efficiency},
  author = {Stojkovic, Jovan and Zhang, Chaojie and Goiri, {\'I}{\~n}igo and Torrellas, Josep and
    Choukse, Esha},
  booktitle = {IEEE International Symposium on High Performance Computer Architecture (HPCA)},
  pages = {1348--1362},
  year = {2025},
  doi = {10.1109/HPCA61900.2025.00102},
  eprint = {2408.00741},
  archivePrefix = {arXiv},
}

@inproceedings{qin2025mooncake,
  title = {Mooncake: Trading More Storage for Less Computation: A {KVCache-centric} Architecture for
    Serving {LLM} Chatbot},
  author = {Qin, Ruoyu and Li, Zheming and He, Weiran and Cui, Jialei and Ren, Feng and
    Zhang, Mingxing and Wu, Yongwei and Zheng, Weimin and Xu, Xinran},
  booktitle = {23rd USENIX Conference on File and Storage Technologies (FAST 25)},
  pages = {155--170},
  year = {2025},
  url = {https://www.usenix.org/conference/fast25/presentation/qin},
  eprint = {2407.00079},
  archivePrefix = {arXiv},
}

@inproceedings{wang2025burstgpt,
  title = {{BurstGPT}: A Real-world Workload Dataset to Optimize {LLM} Serving Systems},
  author = {Wang, Yuxin and Chen, Yuhan and Li, Zeyu and Kang, Xueze and Fang, Yuchu and
    Zhou, Yeju and Zheng, Yang and Tang, Zhenheng and He, Xin and Guo, Rui and Wang, Xin and
    Wang, Qiang and Zhou, Amelie Chi and Chu, Xiaowen},
  booktitle = {31st ACM SIGKDD Conference on Knowledge Discovery and Data Mining V.2 (KDD)},
  year = {2025},
  doi = {10.1145/3711896.3737413},
  eprint = {2401.17644},
  archivePrefix = {arXiv},
}

@misc{ozcan2025quantifying,
  title = {Quantifying the Energy Consumption and Carbon Emissions of {LLM} Inference via
    Simulations},
  author = {{\"O}zcan, Miray and Wiesner, Philipp and Wei{\ss}, Philipp and Kao, Odej},
  year = {2025},
  eprint = {2507.11417},
  archivePrefix = {arXiv},
}

@misc{vllmsemanticrouter,
  title = {{vLLM} Semantic Router: power model of the fleet simulator},
  howpublished = {\url{https://github.com/vllm-project/semantic-router}},
}

@misc{touvron2023llama2,
  title = {Llama 2: Open Foundation and Fine-Tuned Chat Models},
  author = {Touvron, Hugo and Martin, Louis and Stone, Kevin and others},
  year = {2023},
  eprint = {2307.09288},
  archivePrefix = {arXiv},
}

@misc{grattafiori2024llama3,
  title = {The Llama 3 Herd of Models},
  author = {Grattafiori, A. and Dubey, A. and Jauhri, A. and others},
  year = {2024},
  eprint = {2407.21783},
  archivePrefix = {arXiv},
}

@misc{zhang2022opt,
  title = {{OPT}: Open Pre-trained Transformer Language Models},
  author = {Zhang, Susan and Roller, Stephen and Goyal, Naman and others},
  year = {2022},
  eprint = {2205.01068},
  archivePrefix = {arXiv},
}

@misc{qwen2024qwen25,
  title = {{Qwen2.5} Technical Report},
  author = {{Qwen Team}},
  year = {2024},
  eprint = {2412.15115},
  archivePrefix = {arXiv},
}

@misc{qwen2025qwen3,
  title = {{Qwen3} Technical Report},
  author = {{Qwen Team}},
  year = {2025},
  eprint = {2505.09388},
  archivePrefix = {arXiv},
}

@misc{roziere2023codellama,
  title = {Code {Llama}: Open Foundation Models for Code},
  author = {Rozi{\`e}re, Baptiste and Gehring, Jonas and Gloeckle, Fabian and others},
  year = {2023},
  eprint = {2308.12950},
  archivePrefix = {arXiv},
}

@misc{nvidia2025aiconfigurator,
  title = {{AIConfigurator}},
  author = {{NVIDIA}},
  year = {2025},
  url = {https://github.com/ai-dynamo/aiconfigurator},
}

@misc{jiang2023mistral,
  title = {{Mistral 7B}},
  author = {Jiang, Albert Q. and Sablayrolles, Alexandre and Mensch, Arthur and others},
  year = {2023},
  eprint = {2310.06825},
  archivePrefix = {arXiv},
}
"""

ENTRIES = {
    match[1]: match[0] for match in re.finditer(r"^@\w+\{(\w+),\n.*?^\}$", BIBTEX, re.M | re.S)
}
"""Key -> entry."""

MARKS = {
    "zhong2024distserve": ("LLMServe/DistServe",),
    "patel2024splitwise": ("Mutinifni/splitwise-sim",),
    "he2024uellm": ("HYIUYOU/UELLM",),
    "agrawal2024vidur": ("microsoft/vidur",),
    "cho2024llmservingsim": ("casys-kaist/LLMServingSim",),
    "nvidia2025aiconfigurator": ("ai-dynamo/aiconfigurator",),
    "yu2022orca": ('"Orca", OSDI 2022',),
    "jagadish1998histograms": ("Jagadish et al., VLDB 1998",),
}
"""Key -> words that mean the entry, besides its key, DOI, arXiv id and address."""


def marks(key: str) -> tuple[str, ...]:
    """Return the words in a text that mean an entry."""
    fields = dict(re.findall(r"^  (doi|eprint|url) = \{(.*)\},$", ENTRIES[key], re.M))
    return (key, *fields.values(), *MARKS.get(key, ()))


def cited_in(text: str) -> list[str]:
    """Return the keys of the entries that a text means, in the order of the bibliography."""
    return [key for key in ENTRIES if any(mark in text for mark in marks(key))]
