"""From conversations to tokens: templates, rendering with origins, the render contract, and pictures of masks."""
