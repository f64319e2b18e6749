// `kunlun.PFFN` as an OpenVINO operation: (q [B, T, d], k [B, n_kv, H, d_h], v) → [B, T, d], all f32. One block of K and V
// may stand for all samples, as in the products that the operation replaces.

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>
#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "pffn_kernel.hpp"

namespace {

class PFFN : public ov::op::Op {
public:
    OPENVINO_OP("PFFN", "kunlun");

    PFFN() = default;

    void validate_and_infer_types() override {
        const auto q = get_input_partial_shape(0), k = get_input_partial_shape(1), v = get_input_partial_shape(2);
        NODE_VALIDATION_CHECK(
            this, k.rank().is_static() && k.size() == 4 && k[1].is_static() && k[2].is_static() && k[3].is_static(),
            "k: expected [B, n_kv, H, d_h] with fixed n_kv, H and d_h, found ", k);
        NODE_VALIDATION_CHECK(
            this, block().supported(bf16_), "expected activation 1 to 3 and d_h and n_kv in multiples of ", bf16_ ? 32 : 16,
            ", found activation ", activation_, " and k ", k);
        NODE_VALIDATION_CHECK(this, v.compatible(k), "v: expected the shape of k ", k, ", found ", v);
        const ov::Dimension width = k[2] * k[3];
        NODE_VALIDATION_CHECK(
            this, q.rank().is_static() && q.size() == 3 && q[2].compatible(width), "q: expected [B, T, ", width, "], found ", q);
        NODE_VALIDATION_CHECK(
            this, k[0].compatible(q[0]) || k[0].compatible(1), "k: expected ", q[0], " samples or one for all, found ", k[0]);
        for (std::size_t i = 0; i < 3; ++i)
            NODE_VALIDATION_CHECK(this, get_input_element_type(i) == ov::element::f32, "input ", i, ": expected f32");
        set_output_type(0, ov::element::f32, get_input_partial_shape(0));
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        auto copy = std::make_shared<PFFN>();
        copy->set_arguments(inputs);
        copy->activation_ = activation_;
        copy->scale_in_ = scale_in_;
        copy->scale_out_ = scale_out_;
        copy->eps_ = eps_;
        copy->bf16_ = bf16_;
        copy->constructor_validate_and_infer_types();
        return copy;
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("activation", activation_);
        visitor.on_attribute("scale_in", scale_in_);
        visitor.on_attribute("scale_out", scale_out_);
        visitor.on_attribute("eps", eps_);
        visitor.on_attribute("bf16", bf16_);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const auto shape = inputs[0].get_shape(), blocks = inputs[1].get_shape();
        if (inputs[2].get_shape() != blocks || (blocks[0] != shape[0] && blocks[0] != 1)) return false;
        outputs[0].set_shape(shape);
        const auto b = block();
        const std::size_t steps = shape[1], row = b.row(), kv = blocks[0] == 1 ? 0 : b.keys * row;
        const auto *q = inputs[0].data<const float>(), *k = inputs[1].data<const float>(), *v = inputs[2].data<const float>();
        auto* out = outputs[0].data<float>();
        tbb::parallel_for(tbb::blocked_range<std::size_t>(0, shape[0], 1), [&](const auto& samples) {
            for (auto s = samples.begin(); s < samples.end(); ++s) {
                const kunlun::Packed packed(b, bf16_, k + s * kv, v + s * kv);
                kunlun::pffn_rows(b, bf16_, packed, q + s * steps * row, out + s * steps * row, steps);
            }
        });
        return true;
    }

private:
    kunlun::Block block() const {
        const auto k = get_input_partial_shape(1);
        return {
            static_cast<std::size_t>(k[2].get_length()), static_cast<std::size_t>(k[3].get_length()),
            static_cast<std::size_t>(k[1].get_length()), static_cast<kunlun::Activation>(activation_), scale_in_, scale_out_, eps_};
    }

    std::int64_t activation_ = 0;
    float scale_in_ = 1.0f, scale_out_ = 1.0f, eps_ = 1e-5f;
    bool bf16_ = false;
};

}  // namespace

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({std::make_shared<ov::OpExtension<PFFN>>()}));

// What this machine's kernels can do: 0 nothing, 1 f32, 2 bf16 as well.
extern "C" __attribute__((visibility("default"))) int kunlun_kernels() {
    return kunlun::has_avx512() ? 1 + kunlun::has_amx_bf16() : 0;
}
