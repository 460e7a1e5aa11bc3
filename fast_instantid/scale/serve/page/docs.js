// Without a URL of its own, Swagger UI would ask swagger.io whether the document is valid.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#requests", validatorUrl: null });
